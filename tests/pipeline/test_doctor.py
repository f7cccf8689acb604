"""What `temper doctor` says of other work on a machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from temper.pipeline import doctor


@pytest.mark.parametrize(
    ("busy", "threads", "is_good"),
    [(0.0, 2, True), (0.2, 2, True), (1.0, 2, False), (2.0, 2, False), (1.0, 1, True), (2.0, 1, True), (-0.1, 2, True)],
)
def test_other_work_is_told_where_threads_would_wait_for_it(
    busy: float, threads: int, is_good: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two cores, of which so many are busy: with as many threads as are free, none waits."""
    stat = tmp_path / "stat"
    stat.write_text("cpu  1 2 3 4 5 6 7 8\ncpu0 1 2\ncpu1 1 2\nintr 5\n")
    times = iter([(100.0, 1000.0), (100.0 + 30 * busy, 1060.0)])
    monkeypatch.setattr(doctor, "STAT", stat)
    monkeypatch.setattr(doctor, "_times", lambda: next(times))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    (found,) = doctor._other_work()
    assert found.value == f"{max(0.0, busy):.1f} of 2 cores are busy with it"
    assert found.is_good is is_good
    assert ("OMP_WAIT_POLICY=PASSIVE" in found.hint) is not is_good


def test_of_a_system_that_does_not_tell_nothing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "STAT", tmp_path / "none")
    assert doctor._other_work() == []


def test_what_this_process_does_is_not_other_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  1000 0 500 9000 100 0 0 7 0 0\n")
    monkeypatch.setattr(doctor, "STAT", stat)
    monkeypatch.setattr(doctor.os, "times", lambda: type("Times", (), {"user": 2.0, "system": 1.0})())
    found = doctor._times()
    assert found == (1507 - 3 * doctor.os.sysconf("SC_CLK_TCK"), 10607)
