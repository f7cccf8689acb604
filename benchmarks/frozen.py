"""Training the upper blocks alone, with what the lower ones give kept from one pass over the data to the next.

    python benchmarks/frozen.py [--model middle] [--passes 3] [--repeats 2]

LoRA of rank 16 on the upper third of the blocks of a model of `peers.py`, over as many rows as two updates hold;
`keep_frozen` on and off in turns, each in a process of its own. Tokens a second of the first pass over the data, in
which nothing is kept yet, and of the later ones.
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

from peers import ALLOCATOR, MODELS, prepare, spread

ROWS, BATCH = 32, 16


def train(case: dict[str, Any], keep: bool) -> dict[str, float]:
    """Train, and return the tokens a second of the first pass and of the others."""
    from temper import FitSettings, fit, load_model, open_rows

    blocks = MODELS[case["shape"]]["num_hidden_layers"]
    settings = FitSettings(
        tune={"lora": {"rank": 16, "targets": [f"{block}.*" for block in range(blocks - blocks // 3, blocks)]}},
        epochs=case["passes"],
        batch_size=BATCH,
        keep_frozen=keep,
        spike=None,
    )
    marks: list[tuple[float, float]] = []

    def on_step(metrics: dict[str, float]) -> None:
        marks.append((time.monotonic(), metrics["tokens"]))

    fit(load_model(case["model"], dtype="float32"), open_rows(case["rows"]), settings, on_step=on_step)
    a_pass = ROWS // BATCH
    # The first update pays for the start; the others of its pass are counted.
    first = (marks[a_pass - 1][1] - marks[0][1]) / (marks[a_pass - 1][0] - marks[0][0])
    later = (marks[-1][1] - marks[a_pass - 1][1]) / (marks[-1][0] - marks[a_pass - 1][0])
    return {"first": first, "later": later}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="middle", choices=[name for name in MODELS if name != "large"])
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        case = json.loads(Path(chosen.child).read_text())
        print("RESULT " + json.dumps(train(case, case["keep"])))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        case = prepare({"shape": chosen.model, "kind": "mixed", "tune": "lora", "steps": ROWS // BATCH}, folder)
        turns = []
        for _ in range(chosen.repeats):
            turn = {}
            for keep in (True, False):
                file = folder / "keep.json"
                file.write_text(json.dumps({**case, "keep": keep, "passes": chosen.passes}))
                command = [sys.executable, __file__, "--child", str(file)]
                done = subprocess.run(command, env={**os.environ, **ALLOCATOR}, capture_output=True, text=True)
                (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")] or [done.stderr]
                turn[keep] = json.loads(line.removeprefix("RESULT "))
            turns.append(turn)
    for name in ("first", "later"):
        kept, computed = (statistics.median(turn[keep][name] for turn in turns) for keep in (True, False))
        ratio = spread([turn[True][name] / turn[False][name] for turn in turns])
        print(f"{name:6} pass: {kept:7,.0f} tokens/s kept, {computed:7,.0f} computed again: {ratio}")


if __name__ == "__main__":
    main()
