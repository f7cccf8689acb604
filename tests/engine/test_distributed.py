"""Many processes: the same steps as one, to rounding; the same bits as themselves; other numbers go on from them.

Tolerance: all runs compute in float32, with AdamW. A sum over processes has another order than a sum over passes, which
is a relative error of 1e-7 in a gradient. The optimizer divides a gradient by its own size; eps = 1e-3 keeps it from
making a whole step of the rounding of a gradient near zero, which would test the arithmetic of float32 and not ours.
What is left grows over 50 steps, in which the loss falls to a fiftieth, to some 5e-6 of a loss: 1e-5 is allowed. The
gradient of a loss that has nearly vanished is a difference of larger numbers: its norm is allowed ten times that.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from families import tiny
from processes import together
from temper.engine.distributed import World
from temper.engine.layout import Layout, whole
from temper.engine.loop import Loop, Validation, to_batches
from training import examples, make_loop

TOLERANCE = 1e-5
OPTIMIZER = {"adamw": {"eps": 1e-3, "weight_decay": 0.01}}
JOBS: dict[str, dict[str, Any]] = {
    "full": {"tune": "full", "num_steps": 50},
    "lora": {"tune": {"lora": {"rank": 3}}, "lr": 1e-2, "num_steps": 50},
    # Many passes a step, so that processes have different numbers of them; some numbers of the model are frozen.
    "passes": {"tune": {"full": {"freeze": ["*.layers.0.*norm*"]}}, "micro_tokens": 24, "num_steps": 12},
    # Fewer examples than processes: some have none.
    "few": {"tune": "full", "batch_size": 2, "num_steps": 12},
    "few lora": {"tune": {"lora": {"rank": 3}}, "batch_size": 2, "num_steps": 12},
}
RUNS = [
    (2, "fsdp=2", ["full", "lora", "passes"]),
    (4, "fsdp=4", ["full", "lora", "few", "few lora"]),
    (4, "fsdp=2,tp=2", ["passes"]),
    (4, "dp=2,fsdp=2", ["passes", "few lora"]),
]
CONTROLS = ("passes", "few lora")


def loop_of(folder: Path, world: World | None = None, **settings: Any) -> Loop:
    held_out = to_batches(examples((9, 9, 12, 7, 30), seed=5), 16)
    return make_loop(
        folder,
        tiny("llama"),
        **{
            "batch_size": 6,
            "optimizer": OPTIMIZER,
            "validation": Validation(held_out, 10),
            "checkpoint_steps": 20,
            "world": world,
            **settings,
        },
    )


def run(folder: Path, world: World | None = None, **settings: Any) -> Loop:
    """Run a loop, and leave in its folder what it trained."""
    loop = loop_of(folder, world, **settings)
    loop.run()
    trained = {name: whole(parameter.detach()).clone() for name, parameter in loop.trained}
    if loop.world.is_main:
        save_file(trained, folder / "trained.safetensors")
    return loop


def metrics(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def difference(found: Path, expected: Path) -> float:
    """The largest relative difference of a loss, or a tenth of a gradient's norm's; all else must be equal."""
    worst = 0.0
    for here, there in zip(metrics(found), metrics(expected), strict=True):
        assert here.keys() == there.keys()
        for name, value in there.items():
            relative = abs(here[name] - value) / (abs(value) or 1.0)
            if name in ("loss", "validation_loss", "grad_norm"):
                worst = max(worst, relative / 10 if name == "grad_norm" else relative)
            else:
                assert relative < 1e-12, name
    return worst


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process does."""
    folder = tmp_path_factory.mktemp("alone")
    for name, settings in JOBS.items():
        run(folder / name, **settings)
    return folder


class MeanOfMeans(World):
    """What is wrong: each process divides by its own units."""

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        if values.keys() == {"units"}:
            return {"units": max(1.0, values["units"]) * self.data_size}
        return super().sum(values)


@pytest.mark.parametrize(("size", "layout", "jobs"), RUNS, ids=lambda value: str(value))
def test_many_processes_take_the_steps_of_one(
    tmp_path: Path, alone: Path, size: int, layout: str, jobs: list[str]
) -> None:
    def work(world: World) -> None:
        for name in jobs:
            run(tmp_path / name, world, **JOBS[name])
            if name in CONTROLS:
                run(tmp_path / "wrong" / name, MeanOfMeans(**vars(world)), **JOBS[name])

    together(size, work, Layout.parse(layout))
    for name in jobs:
        assert difference(tmp_path / name, alone / name) < TOLERANCE, name
        found, expected = (load_file(place / name / "trained.safetensors") for place in (tmp_path, alone))
        for tensor, value in expected.items():
            torch.testing.assert_close(found[tensor], value, atol=1e-5, rtol=1e-4)
        if name in CONTROLS:
            assert difference(tmp_path / "wrong" / name, alone / name) > 100 * TOLERANCE, name


PLAIN: dict[str, dict[str, Any]] = {"full": {"tune": "full"}, "lora": {"tune": {"lora": {"rank": 3}}}}
DYING_STEP = 9


def go_on(folder: Path, world: World | None = None) -> None:
    for name, settings in PLAIN.items():
        run(folder / name, world, num_steps=14, checkpoint_steps=3, **settings)


def test_a_run_cut_on_two_processes_goes_on_on_one_two_and_four(tmp_path: Path) -> None:
    """On two it ends in the same bits; on another number it takes the same steps, and says that bits may differ."""

    def cut(world: World) -> None:
        for name, settings in PLAIN.items():
            loop = loop_of(tmp_path / "cut" / name, world, num_steps=14, checkpoint_steps=3, **settings)
            check = loop.watch.check

            def stop(step: int, *rest: Any, check: Any = check) -> None:
                if step == DYING_STEP:
                    raise Stopped
                check(step, *rest)

            loop.watch.check = stop  # type: ignore[method-assign]
            with pytest.raises(Stopped):
                loop.run()

    go_on(tmp_path / "one")

    def two(world: World) -> None:
        go_on(tmp_path / "two", world)
        cut(world)
        if world.is_main:
            for number in ("one", "two", "four"):
                shutil.copytree(tmp_path / "cut", tmp_path / "continued" / number)
        world.gather(None)
        go_on(tmp_path / "continued" / "two", world)

    together(2, two)
    together(4, lambda world: go_on(tmp_path / "continued" / "four", world))
    go_on(tmp_path / "continued" / "one")
    for name in PLAIN:
        assert metrics(tmp_path / "continued" / "two" / name) == metrics(tmp_path / "two" / name)
        found, expected = (
            load_file(folder / name / "trained.safetensors")
            for folder in (tmp_path / "continued" / "two", tmp_path / "two")
        )
        assert all(torch.equal(found[tensor], value) for tensor, value in expected.items()), name
        for number in ("one", "four"):
            assert difference(tmp_path / "continued" / number / name, tmp_path / "one" / name) < TOLERANCE


class Stopped(Exception):
    pass
