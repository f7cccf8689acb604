"use strict";
(() => {
  const tip = document.getElementById("tip");
  const show = (value) => {
    if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) return value.toExponential(2).replace("-", "\u2212");
    return String(Number(value.toPrecision(4))).replace("-", "\u2212");
  };
  for (const chart of document.querySelectorAll("svg.lines")) {
    const [x0, x1, y0, y1] = chart.dataset.domain.split(" ").map(Number);
    const [left, right, bottom, top] = chart.dataset.frame.split(" ").map(Number);
    const logarithmic = chart.dataset.log === "1";
    const across = (x) => x0 + (x1 - x0) * (x - left) / (right - left);
    const up = (y) => {
      const part = (bottom - y) / (bottom - top);
      return logarithmic ? y0 * (y1 / y0) ** part : y0 + (y1 - y0) * part;
    };
    const lines = [...chart.querySelectorAll("path[data-name]")].map((path) => ({
      name: path.dataset.name,
      points: [...path.getAttribute("d").matchAll(/[ML](\S+) ([^MLh\s]+)/g)].map((found) => [Number(found[1]), Number(found[2])]),
    }));
    const rule = document.createElementNS("http://www.w3.org/2000/svg", "path");
    rule.setAttribute("class", "rule");
    chart.append(rule);
    const hide = () => { tip.hidden = true; rule.setAttribute("d", ""); };
    chart.addEventListener("pointerleave", hide);
    chart.addEventListener("pointercancel", hide);
    chart.addEventListener("pointermove", (event) => {
      const box = chart.getBoundingClientRect();
      const scale = box.width / chart.viewBox.baseVal.width;
      const at = (event.clientX - box.left) / scale;
      if (at < left - 4 || at > right + 4) return hide();
      const near = lines.filter((line) => line.points.length).map((line) => ({
        name: line.name,
        point: line.points.reduce((best, point) => Math.abs(point[0] - at) < Math.abs(best[0] - at) ? point : best),
      }));
      if (!near.length) return hide();
      const first = near.reduce((best, line) => Math.abs(line.point[0] - at) < Math.abs(best.point[0] - at) ? line : best);
      rule.setAttribute("d", `M${first.point[0]} ${top}V${bottom}`);
      tip.textContent = `${chart.dataset.x} ${Math.round(across(first.point[0])).toLocaleString("en")}\n`
        + near.map((line) => `${line.name} ${show(up(line.point[1]))}`).join("\n");
      tip.hidden = false;
      const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
      tip.style.left = `${Math.max(8, Math.min(event.clientX + 14, room)) + window.scrollX}px`;
      tip.style.top = `${event.clientY + 16 + window.scrollY}px`;
    });
  }
  for (const block of document.querySelectorAll(".block")) {
    if (!navigator.clipboard) break;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(block.querySelector("pre").textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    block.prepend(button);
  }
  const reveal = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && target.matches("details")) target.open = true;
  };
  addEventListener("hashchange", reveal);
  reveal();
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open], .extra)")];
    for (const part of closed) part.open = true;
  });
  addEventListener("afterprint", () => { for (const part of closed) part.open = false; });
})();
