"""How soon a run on a million JSONL rows takes its first step, and how much memory it holds.

    python benchmarks/million_rows.py [rows]

Writes the rows into a temporary folder, runs a recipe on them in a process of its own, and prints seconds from the
start of that process to its first optimizer step, and its largest resident memory, beside those of a thousand rows.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"]
RECIPE = """
base: {new: {family: llama, width: 64, layers: 2, heads: 4, vocabulary: 512, tokenizer_data: [few.jsonl]}}
measure: {shots: 0}
stages:
  - name: adapt
    train: {data: [DATA], tune: full, lr: 1e-3, steps: 5, batch_size: 32}
"""


def write_rows(path: Path, count: int) -> None:
    """Write rows of about 290 bytes."""
    generator = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            prompt = f"question {number}: " + " ".join(generator.choices(WORDS, k=24)) + " ? "
            row = {"prompt": prompt, "completion": " ".join(generator.choices(WORDS, k=14)), "task": f"t{number % 7}"}
            file.write(json.dumps(row) + "\n")


def first_step(folder: Path, name: str, data: str) -> tuple[float, float]:
    """Run a recipe on `data`; return seconds to its first step, and the process's peak memory in MiB."""
    (folder / f"{name}.yaml").write_text(RECIPE.replace("DATA", data))
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", "from temper.cli import main; main()", "run", f"{name}.yaml"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said, seconds = [], float("nan")
    for line in process.stderr:
        said.append(line)
        if "step 1/" in line:
            seconds = time.monotonic() - started
    if process.wait() != 0:
        raise SystemExit(f"the run on {data} failed:\n{''.join(said)}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert peak >= before, "the larger run comes last, so the children's peak is its own"
    return seconds, peak / 1024


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_rows(folder / "few.jsonl", 1_000)
        write_rows(folder / "many.jsonl", count)
        size = (folder / "many.jsonl").stat().st_size / 2**20
        few_seconds, few_mib = first_step(folder, "few", "few.jsonl")
        many_seconds, many_mib = first_step(folder, "many", "many.jsonl")
    print("| rows | seconds to the first step | peak memory (MiB) |")
    print("|---|---|---|")
    print(f"| 1,000 | {few_seconds:.1f} | {few_mib:.0f} |")
    print(f"| {count:,} ({size:.0f} MiB) | {many_seconds:.1f} | {many_mib:.0f} |")
    print(f"| difference, for the data | {many_seconds - few_seconds:.1f} | {many_mib - few_mib:.0f} |")


if __name__ == "__main__":
    main()
