"""Predicted against measured peak memory: `temper plan` and `temper run` on one recipe each, in processes of their own.

    python benchmarks/plan.py [--only NAME] [--write docs/plan.md]

Peak memory is what the system reports of the training process (VmHWM since the stage began), with the C library's own
allocator in its own settings: no variable that changes it is set. The base of each recipe is a new random model.
`--write` puts the table in the place of the page's own after each configuration, and leaves its words.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from temper.lab.architecture import Architecture
from temper.models.load import new_model, save_model

STEPS = 4
ALLOWED = 0.10
COLUMNS = "| configuration | predicted, MiB | measured, MiB | error |"


class Case(NamedTuple):
    """One configuration."""

    family: str
    width: int
    layers: int
    vocabulary: int
    tune: str
    recompute: float
    precision: str
    length: int
    batch_size: int = 8
    more: dict[str, Any] = {}  # noqa: RUF012 (never changed)

    @property
    def name(self) -> str:
        share = f"-recompute{self.recompute:g}" if self.recompute else ""
        extra = "".join(f"-{key}" for key in self.more)
        return (
            f"{self.family}-{self.width}x{self.layers}-v{self.vocabulary}-{self.tune}-{self.precision}"
            f"-l{self.length}{share}{extra}"
        )


CASES = [
    Case("llama", 128, 2, 1_000, "full", 0, "fp32", 128),
    Case("llama", 256, 4, 8_000, "full", 0, "fp32", 256),
    Case("llama", 256, 8, 8_000, "full", 1, "fp32", 256),
    Case("llama", 512, 8, 16_000, "full", 0, "fp32", 512),
    Case("llama", 512, 8, 16_000, "full", 0, "bf16", 512),
    Case("llama", 512, 8, 16_000, "full", 0.5, "bf16", 512),
    Case("llama", 512, 8, 16_000, "lora", 0, "bf16", 512),
    Case("llama", 512, 8, 16_000, "lora", 1, "bf16", 512),
    Case("llama", 512, 8, 16_000, "lora", 0, "fp32", 1024),
    Case("llama", 256, 4, 128_000, "full", 0, "bf16", 256),
    Case("llama", 128, 2, 128_000, "lora", 0, "fp32", 256),
    Case("llama", 256, 4, 4_000, "full", 0, "bf16", 4096, 2),
    Case("llama", 256, 4, 4_000, "full", 1, "fp32", 4096, 2),
    Case("qwen2", 256, 6, 32_000, "full", 0, "bf16", 256),
    Case("qwen3", 256, 6, 32_000, "full", 0, "fp32", 512),
    Case("qwen3", 384, 6, 32_000, "lora", 0, "bf16", 1024),
    Case("gemma2", 256, 4, 16_000, "full", 0, "fp32", 256),
    Case("gemma3", 256, 4, 32_000, "full", 0, "bf16", 512),
    Case("gemma3", 256, 6, 32_000, "lora", 1, "bf16", 1024),
    Case("phi3", 384, 6, 16_000, "full", 0, "bf16", 512),
    Case("phi3", 384, 6, 16_000, "lora", 0, "fp32", 256),
    Case("gpt2", 384, 6, 32_000, "full", 0, "fp32", 512),
    Case("gpt2", 384, 6, 32_000, "full", 1, "bf16", 1024),
    Case("gpt_neox", 256, 4, 8_000, "full", 0, "bf16", 512),
    Case("opt", 256, 4, 8_000, "lora", 0, "fp32", 512),
    Case("llama", 256, 4, 8_000, "full", 0, "fp32", 256, 8, {"checkpoint_steps": 2}),
    Case("llama", 512, 8, 16_000, "lora", 0, "bf16", 512, 8, {"hold": "nf4"}),
    Case("qwen3", 384, 6, 32_000, "lora", 0.5, "bf16", 1024, 8, {"hold": "int8"}),
]


def tokenizer(size: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words `w0`, `w1`, ..."""
    vocabulary = {"<eos>": 0, "<unk>": 1, **{f"w{index}": index for index in range(2, size)}}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", unk_token="<unk>")


def write(case: Case, folder: Path) -> Path:
    """Write model, data and recipe of a case, and return the recipe's file."""
    sizes = Architecture(
        family=case.family,  # type: ignore[arg-type]
        width=case.width,
        layers=case.layers,
        heads=case.width // 64,
        max_positions=max(512, case.length),
    )
    save_model(new_model(sizes.config(case.vocabulary), tokenizer(case.vocabulary), 0), folder / "base")
    generator = random.Random(0)
    with (folder / "data.jsonl").open("w") as file:
        for _ in range(case.batch_size * STEPS):
            length = generator.randint(case.length // 2, case.length - 1)
            text = " ".join(f"w{generator.randrange(2, case.vocabulary)}" for _ in range(length))
            file.write(json.dumps({"text": text}) + "\n")
    train = {
        "data": [str(folder / "data.jsonl")],
        "tune": case.tune,
        "objective": "lm",
        "lr": 1e-4,
        "epochs": 1,
        "batch_size": case.batch_size,
        "max_length": case.length,
        "recompute": case.recompute,
        "precision": case.precision,
        **case.more,
    }
    recipe = {"base": str(folder / "base"), "measure": {"keep": []}, "stages": [{"name": "train", "train": train}]}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return folder / "recipe.yaml"


def temper(*arguments: str) -> str:
    """Run the command in a process of its own, with the allocator as it comes, and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment.pop("LD_PRELOAD", None)
    command = [sys.executable, "-c", "from temper.cli import main; main()", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def measure(case: Case) -> dict[str, Any]:
    """Plan and run a case."""
    with tempfile.TemporaryDirectory(prefix="temper-plan-") as made:
        folder = Path(made)
        recipe, runs = str(write(case, folder)), str(folder / "runs")
        planned = json.loads(temper("plan", recipe, "--json", "--runs", runs))
        (stage,) = planned["stages"]
        temper("run", recipe, "--runs", runs)
        (record,) = (folder / "runs" / "recipe").glob("train-*/stage.json")
        cost = json.loads(record.read_text())["cost"]
    assert (stage["steps"], stage["tokens"], stage["flops"]) == (cost["steps"], cost["tokens"], cost["flops"])
    return {
        "name": case.name,
        "predicted": stage["memory_bytes"],
        "measured": cost["peak_memory_bytes"],
        "error": stage["memory_bytes"] / cost["peak_memory_bytes"] - 1,
        "seconds": stage["seconds"] / cost["seconds"] - 1,
        "memory": stage["memory"],
    }


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a part of a case's name")
    parser.add_argument("--write", type=Path, help="the page to write")
    arguments = parser.parse_args()
    rows = []
    for case in CASES:
        if arguments.only in case.name:
            rows.append(measure(case))
            row = rows[-1]
            print(
                f"{row['name']:<52} {row['predicted'] / 2**20:8.0f} {row['measured'] / 2**20:8.0f} MiB"
                f" {row['error']:+7.1%}  time {row['seconds']:+7.0%}",
                flush=True,
            )
            if arguments.write:
                words = arguments.write.read_text(encoding="utf-8").partition(COLUMNS)[0]
                arguments.write.write_text(words + table(rows), encoding="utf-8")
    worst = max(abs(row["error"]) for row in rows)
    print(f"{len(rows)} configurations, worst error {worst:.1%}")
    sys.exit(worst > ALLOWED)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table of a page."""
    lines = [
        f"| {row['name']} | {row['predicted'] / 2**20:,.0f} | {row['measured'] / 2**20:,.0f} | {row['error']:+.1%} |"
        for row in rows
    ]
    return "\n".join([COLUMNS, "|---|---|---|---|", *lines, ""])


if __name__ == "__main__":
    main()
