"""The page in a real browser: headless Chromium, which these tests need (`apt-get install chromium`).

Every page is shown in frames as wide as a phone and as a desktop, all in one browser window for light and one for
dark. A probe inside each frame tells what it saw.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from report.fake_run import write_run
from temper.report import format as fmt
from temper.report import write_report
from temper.report.read import read_run
from temper.report.views import gain_table

WIDTHS = (400, 820, 1200)
VARIANTS = ("whole", "failed", "started", "wild", "wide")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WATCH = """<script>
window.troubles = [];
addEventListener("error", (event) => troubles.push(String(event.message || event.target)), true);
addEventListener("unhandledrejection", (event) => troubles.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => troubles.push(event.violatedDirective));
console.error = console.warn = (...parts) => troubles.push(parts.join(" "));
</script>"""
AROUND = """<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark"><pre id="seen"></pre>
<script>
const seen = [];
addEventListener("message", (event) => {
  seen.push(event.data);
  if (seen.length === COUNT) document.getElementById("seen").textContent = JSON.stringify(seen);
});
</script>
"""


def find_chromium() -> str:
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.fail("the report is tested in a browser and there is none; apt-get install chromium", pytrace=False)
    return found


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each variant, with its report."""
    made = {}
    for variant in VARIANTS:
        suites, stages = (20, 8) if variant == "wide" else (5, 4)
        folder = tmp_path_factory.mktemp("run") / variant
        made[variant] = write_run(folder, variant=variant, num_suites=suites, num_stages=stages)
        write_report(folder)
    return made


def look(
    folders: dict[str, Path], place: Path, widths: tuple[int, ...], *flags: str
) -> dict[tuple[str, int], dict[str, Any]]:
    """Show all pages at these widths and return what the probes saw, by variant and width."""
    probe = Path(__file__).with_name("probe.js").read_text(encoding="utf-8")
    frames = []
    for variant, folder in folders.items():
        page = (folder / "report.html").read_text(encoding="utf-8")
        page = page.replace('<link rel="icon"', f'{WATCH}\n<link rel="icon"', 1)
        page = page.replace("</body>", f"<script>{probe}</script></body>")
        (place / f"{variant}.html").write_text(page, encoding="utf-8")
        frames += [
            f'<iframe name="{variant} {width}" src="{variant}.html" style="width:{width}px;height:900px;border:0">'
            "</iframe>"
            for width in widths
        ]
    around = place / "around.html"
    around.write_text(AROUND.replace("COUNT", str(len(frames))) + "\n".join(frames), encoding="utf-8")
    command = [
        find_chromium(),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--disable-quic",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--no-first-run",
        f"--user-data-dir={place / 'profile'}",
        "--window-size=1300,1000",
        "--virtual-time-budget=20000",
        *flags,
        "--dump-dom",
        around.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    found = re.search(r'<pre id="seen">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the browser saw nothing: {done.stderr[-2000:]}"
    seen = json.loads(html.unescape(found[1]))
    return {(entry["place"].split()[0], int(entry["place"].split()[1])): entry for entry in seen}


@pytest.fixture(scope="session")
def light(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], dict[str, Any]]:
    return look(folders, tmp_path_factory.mktemp("light"), WIDTHS)


@pytest.fixture(scope="session")
def dark(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], dict[str, Any]]:
    return look(folders, tmp_path_factory.mktemp("dark"), WIDTHS[-1:], "--blink-settings=preferredColorScheme=0")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_page_fits_and_is_quiet(
    light: dict[tuple[str, int], dict[str, Any]], folders: dict[str, Path], variant: str, width: int
) -> None:
    seen = light[variant, width]
    assert seen["width"] == width
    assert seen["needed"] <= width and seen["outside"] == [], "nothing stands out to the right"
    assert seen["cut"] == [], "no text leaves its box or its chart"
    assert seen["troubles"] == [] and seen["loaded"] == [], "no errors, no requests"
    assert seen["title"].endswith("gain and loss")
    table = gain_table(read_run(folders[variant]))
    expected = [
        fmt.number(cell.suite.value, suite.unit)
        for part in table.parts()
        for row in table.rows
        for suite in part
        if (cell := row.cells[suite.label]).suite is not None
    ]
    averages = [fmt.number(row.average, "share") for row in table.rows if row.average is not None]
    shown = [value for value in seen["values"] if value != fmt.MISSING]
    assert sorted(shown) == sorted(expected + averages)
    assert seen["tables"] >= (2 if variant == "started" else 5)


def test_curves_can_be_read_off(light: dict[tuple[str, int], dict[str, Any]]) -> None:
    for width in WIDTHS:
        seen = light["whole", width]
        assert re.fullmatch(r"step 1\d\d\nloss [\d.]+\nsmoothed [\d.]+\nvalidation [\d.]+", seen["tip"]), seen["tip"]
        assert seen["isTipGone"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_text_can_be_read_in_light_and_dark(
    light: dict[tuple[str, int], dict[str, Any]], dark: dict[tuple[str, int], dict[str, Any]], variant: str
) -> None:
    for mode, is_dark in ((light, False), (dark, True)):
        seen = mode[variant, WIDTHS[-1]]
        assert seen["isDark"] == is_dark
        assert seen["contrast"]["ratio"] >= 4.5, seen["contrast"]
    assert light[variant, WIDTHS[0]]["contrast"]["ratio"] >= 4.5
