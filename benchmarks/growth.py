"""How the cost of training grows: tokens per second and memory, with length, vocabulary, batch and size of the model.

    python benchmarks/growth.py [--only length,vocabulary,...] [--json docs/growth.json] [--plot docs/growth.png]

Needs `pip install matplotlib` beside Temper. Full fine-tuning of random Llamas in a process each, the fastest update of
each (the first is not timed). All else is as in `BASE` while one thing grows.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from peers import MODELS, flops, measure, prepare

BASE = MODELS["small"]
LENGTH, TOKENS = 512, 4096
"""tokens of a row, and of an update"""
STEPS = 4
SIZES: dict[str, dict[str, int]] = {
    "1 M": {**BASE, "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 3, "heads": 2},
    "7 M": BASE,
    "29 M": {**BASE, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "heads": 8},
    "91 M": {**BASE, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "heads": 12},
}


def cases(kind: str) -> dict[float, dict[str, Any]]:
    """Return the cases in which one thing grows, by its size."""
    if kind == "length":
        lengths = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
        return {length: _case(BASE, length, max(1, TOKENS // length)) for length in lengths}
    if kind == "vocabulary":
        sizes = (1024, 4096, 16384, 65536, 131072, 262144)
        return {size: _case({**BASE, "vocab_size": size}, LENGTH, TOKENS // LENGTH) for size in sizes}
    if kind == "batch":
        return {rows: _case(BASE, LENGTH, rows) for rows in (1, 2, 4, 8, 16, 32)}
    return {parameters(shape): _case(shape, LENGTH, TOKENS // LENGTH) for shape in SIZES.values()}


def _case(shape: dict[str, int], length: int, batch: int) -> dict[str, Any]:
    steps = 3 if length > 8192 else STEPS
    lengths = [length] * batch * steps
    return {"shape": shape, "tune": "full", "steps": steps, "batch": batch, "lengths": lengths, "precision": "bf16"}


def parameters(shape: dict[str, int]) -> int:
    """Count the numbers of a Llama."""
    width, inner, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    return layers * (4 * width * width + 3 * width * inner) + 2 * shape["vocab_size"] * width


def draw(found: dict[str, list[dict[str, float]]], file: Path) -> None:
    """Draw tokens per second and memory, a panel for each thing that grows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(found), figsize=(3.2 * len(found), 5), squeeze=False, layout="constrained")
    for column, (kind, points) in enumerate(found.items()):
        for row, (key, label) in enumerate((("tokens_per_second", "tokens per second"), ("peak_mib", "peak MiB"))):
            axis = axes[row][column]
            axis.plot([one["size"] for one in points], [one[key] for one in points], marker="o")
            axis.set_xscale("log", base=2 if kind != "model" else 10)
            axis.set_ylim(0, 1.08 * max(one[key] for one in points))
            axis.set_xlabel({"model": "parameters", "batch": "rows of an update"}.get(kind, kind + ", tokens"))
            axis.set_ylabel(label if column == 0 else "")
            axis.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="length,vocabulary,batch,model")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    chosen = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {}
    for kind in chosen.only.split(","):
        found[kind] = []
        for size, case in cases(kind).items():
            with tempfile.TemporaryDirectory() as temporary:
                result = measure("temper", prepare(case, Path(temporary)), Path(temporary), "tuned")
            if result is None:
                continue
            rate = result["fastest_tokens_per_second"]
            point = {"size": size, "tokens_per_second": rate, "peak_mib": result["peak_bytes"] / 2**20}
            point["share_of_products"] = rate * flops(case) / result["product_rate"]
            found[kind].append(point)
            print(f"{kind:10} {size:12,.0f} {rate:9,.0f} tokens/s {point['peak_mib']:8,.0f} MiB", flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")
    if chosen.plot:
        draw(found, chosen.plot)


if __name__ == "__main__":
    main()
