// Looks at a page from inside a frame and tells the page around it what it saw.
(() => {
  const colour = (text) => (text.match(/[\d.]+/g) || []).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const ratio = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const behind = (element) => {
    const node = element.closest("svg.graph .node");
    if (node) return colour(getComputedStyle(node.querySelector("rect")).fill);
    for (let at = element; at; at = at.parentElement) {
      const found = colour(getComputedStyle(at).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const contrast = () => {
    let worst = { ratio: 21, text: "" };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const element = walker.currentNode.parentElement;
      const text = walker.currentNode.textContent.trim();
      if (!text || ["SCRIPT", "STYLE", "title"].includes(element.tagName) || !element.getClientRects().length) continue;
      const style = getComputedStyle(element);
      const found = ratio(colour(element instanceof SVGElement ? style.fill : style.color), behind(element));
      if (found < worst.ratio) worst = { ratio: found, text: text.slice(0, 60) };
    }
    return worst;
  };
  const isClipped = (element) => {
    for (let at = element.parentElement; at && at !== document.body; at = at.parentElement) {
      if (getComputedStyle(at).overflowX !== "visible") return true;
    }
    return false;
  };
  const outside = () => [...document.body.querySelectorAll("*")]
    .filter((element) => !element.closest("svg, #tip") && !isClipped(element) && element.getClientRects().length)
    .filter((element) => element.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
    .map((element) => `${element.tagName}.${element.className} ${element.textContent.trim().slice(0, 40)}`);
  const cut = () => [...document.querySelectorAll("svg text")].filter((text) => text.getClientRects().length)
    .filter((text) => {
      const box = text.getBBox();
      const node = text.closest(".node");
      const frame = node ? node.querySelector("rect").getBBox() : text.ownerSVGElement.viewBox.baseVal;
      return box.x < frame.x - 0.5 || box.x + box.width > frame.x + frame.width + 0.5;
    }).map((text) => text.textContent);
  addEventListener("load", () => setTimeout(() => {
    for (const part of document.querySelectorAll("details")) part.open = true;
    const chart = document.querySelector("svg.lines");
    if (chart) {
      const box = chart.getBoundingClientRect();
      const place = { clientX: box.left + box.width / 2, clientY: box.top + box.height / 2, bubbles: true };
      chart.dispatchEvent(new PointerEvent("pointermove", place));
    }
    const tip = document.getElementById("tip");
    const shownTip = tip.hidden ? "" : tip.textContent;
    if (chart) chart.dispatchEvent(new PointerEvent("pointerleave"));
    parent.postMessage({
      place: window.name,
      width: document.documentElement.clientWidth,
      needed: document.documentElement.scrollWidth,
      outside: outside(),
      cut: cut(),
      contrast: contrast(),
      isDark: luminance(colour(getComputedStyle(document.body).backgroundColor)) < 0.2,
      tip: shownTip,
      isTipGone: tip.hidden,
      title: document.title,
      loaded: performance.getEntriesByType("resource").map((entry) => entry.name),
      troubles: window.troubles,
      values: [...document.querySelectorAll(".gains .value")].filter((value) => value.getClientRects().length)
        .map((value) => value.textContent),
      tables: [...document.querySelectorAll("table")].filter((table) => table.getClientRects().length).length,
    }, "*");
  }, 50));
})();
