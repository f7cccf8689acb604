"""Every command of the README works, and the demo shows what the README says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from papers import DEMO, do_section
from temper.pipeline.result import Run

pytestmark = pytest.mark.starts_first


def test_commands_work(tmp_path: Path, environment: dict[str, str]) -> None:
    do_section(*DEMO, tmp_path, environment)
    _check_demo(Run(tmp_path / "runs" / "demo"))


def _check_demo(demo: Run) -> None:
    """What the README says of the demo: a new skill from nothing, forgetting without replay and none with it."""
    value = {
        name: {label: suite["value"] for label, suite in stage.suites.items()} for name, stage in demo.stages.items()
    }
    new, known = "lab/sort_descending", ("lab/copy", "lab/shift", "lab/sort")
    assert value["base"][new] < 0.05 and all(value["base"][suite] > 0.9 for suite in known)
    assert value["adapt"][new] > 0.9 and all(value["adapt"][suite] < 0.5 for suite in known)
    assert value["careful"][new] > 0.9 and all(value["careful"][suite] > 0.8 for suite in known)
