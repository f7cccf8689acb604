"""When the loop calls what lives while training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from temper.core.methods import Live
from training import make_loop


class Recorder(Live):
    """Notes each call, and whether there were gradients then."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bool]] = []

    def watch(self, loop: Any) -> None:
        self.loop = loop

    def _note(self, name: str) -> None:
        self.calls.append((name, any(parameter.grad is not None for _, parameter in self.loop.trained)))

    def before_step(self, moment: Any) -> None:
        self._note("before_step")

    def before_update(self, moment: Any) -> None:
        self._note("before_update")

    def after_step(self, moment: Any) -> None:
        self._note("after_step")

    def after_training(self) -> None:
        self._note("after_training")


def test_hooks_are_called_in_order_and_see_the_gradient_before_the_update(tmp_path: Path) -> None:
    recorder = Recorder()
    loop = make_loop(tmp_path, num_steps=2, further=[recorder])
    recorder.watch(loop)
    loop.run()
    step = [("before_step", False), ("before_update", True), ("after_step", False)]
    assert recorder.calls == [*step, *step, ("after_training", False)]
