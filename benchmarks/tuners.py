"""What tuners take beside full tuning and LoRA: memory above the loaded model, and time, on 135 million parameters.

    python benchmarks/tuners.py [--tuners "full;lora;lift;..."] [--repeats 3] [--write docs/tuners.md]

A tuner is written as in a recipe, its name or YAML: `{lift: {density: 0.02}}`. Each runs in a process of its own, one
after another, in turns, on the same rows and updates (those of `peers.py`), in bf16. Memory is the process' peak less
what it held with the model loaded: gradients, the optimizer's state, and what the backward pass needs. The first
updates are not timed. The table gives medians, and ratios within a turn with their range.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from peers import ALLOCATOR, prepare, spread

CASE = {"shape": "middle", "kind": "mixed", "steps": 8, "precision": "bf16", "tune": "full"}
DEFAULT = "full;lora;lift;spiel;{spiel: {regrow: ma}};s2ft"
WARM_UP = 2


def one(tune: Any, case: dict[str, Any]) -> dict[str, float]:
    """Train with a tuner in this process."""
    from temper import FitSettings, fit, load_model, open_rows

    settings = FitSettings(
        tune=tune,
        lr=case["lr"],
        schedule={"constant": {"warmup": 0}},
        steps=case["steps"],
        batch_size=case["batch"],
        max_length=case["longest"],
        precision=case["precision"],
        spike=None,
    )
    marks: list[float] = []
    fitted = fit(
        load_model(case["model"], dtype="float32"),
        open_rows(case["rows"]),
        settings,
        on_step=lambda metrics: marks.append(time.monotonic()),
    )
    numbers = sum(parameter.numel() for _, parameter in fitted.tuning.parameters())
    taken = fitted.cost["peak_memory_bytes"] - fitted.cost["start_memory_bytes"]
    return {
        "bytes": taken,
        "seconds": (marks[-1] - marks[WARM_UP - 1]) / (len(marks) - WARM_UP),
        "numbers": numbers,
    }


def measure(tune: Any, case: dict[str, Any]) -> dict[str, float]:
    """Train with a tuner in a process of its own.

    Raises:
        SystemExit: it failed; its last words are shown.
    """
    environment = {**os.environ, **ALLOCATOR, "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, "--one", json.dumps(tune), "--case", json.dumps(case)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{tune}:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def table(turns: list[dict[str, dict[str, float]]]) -> str:
    """Return the medians and the ratios to full tuning and to LoRA, as Markdown."""
    head = ("tuner", "numbers that train", "memory above the model", "of full", "of LoRA")
    head += ("seconds an update", "of full", "of LoRA")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in turns[0]:
        numbers = turns[0][name]["numbers"]
        cells = [f"`{name}`", f"{numbers / 1e6:,.1f} M"]
        for kind, scale, unit in (("bytes", 2**20, " MiB"), ("seconds", 1, "")):
            cells.append(f"{statistics.median(turn[name][kind] for turn in turns) / scale:,.{0 if unit else 1}f}{unit}")
            for other in ("full", "lora"):
                is_there = other in turns[0] and other != name
                ratios = [turn[name][kind] / turn[other][kind] for turn in turns] if is_there else []
                cells.append(spread(ratios) if ratios else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tuners", default=DEFAULT, help=f"parted by semicolons; default: {DEFAULT}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", type=Path, help="a Markdown file for the table")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(one(json.loads(chosen.one), json.loads(chosen.case))))
        return
    written = [text.strip() for text in chosen.tuners.split(";")]
    turns: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as temporary:
        case = prepare(dict(CASE), Path(temporary))
        for _ in range(chosen.repeats):
            turns.append({text: measure(yaml.safe_load(text), case) for text in written})
            print(table(turns), flush=True)
    if chosen.write:
        command = f"python benchmarks/tuners.py --repeats {chosen.repeats} --write {chosen.write}"
        text = (
            f"# What tuners take\n\n`{command}`: 135 million parameters, 16 rows an update of median 100 tokens with "
        )
        text += "a tail to 2,048, bf16 with float32 weights, AdamW.\n\n"
        chosen.write.write_text(text + table(turns) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
