"""Temper beside its peers on the same work: useful tokens per second, peak memory, start-up, share of the machine.

    python benchmarks/peers.py [--cases small-full,small-lora,...] [--repeats 3] [--contenders temper,loop,...]
                               [--json FILE]

With `--json` each turn is added to those that the file holds, so a long comparison can be made in several sittings.
On a GPU the cases are those of `large`, a Llama of 8 billion parameters with random weights, and the contenders also
TRL with Liger's kernels and Unsloth (`pip install liger-kernel unsloth`; what is not there is told as failed). Full
tuning takes 16 bytes a parameter in float32, so with less than 140 GiB choose the LoRA cases. No GPU has run it yet.

Needs `pip install trl` beside Temper. Every contender runs in a process of its own, one after another, in turns; the
table gives the median of each, and its ratio to Temper's with the range over the turns. All processes get the same
settings of the C library's allocator, which spare them page faults. "trl" is SFTTrainer with its own defaults (padded,
activations computed again), "trl packed" the fastest it has on a CPU, "loop" what one would write by hand; further
contenders are "temper 8-bit" (averages in 8 bits), "temper 1k" (passes of 1,024 tokens at most) and, in the LoRA
cases, "temper nf4" (the base in 4 bits).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}
MODELS: dict[str, dict[str, int]] = {
    "small": {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6, "heads": 4},
    "middle": {
        "vocab_size": 32768,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "heads": 12,
    },
    "wide": {"vocab_size": 131072, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6, "heads": 4},
    "large": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "heads": 32,
        "key_heads": 8,
    },
}
"""6 million parameters, 110 million, a small one with a vocabulary of 128 k, and 8 billion for a GPU"""
CASES: dict[str, dict[str, Any]] = {
    f"{model}-{tune}{'-long' if kind == 'long' else ''}": {"shape": model, "tune": tune, "kind": kind, "steps": steps}
    for model, kind, steps in (
        ("small", "mixed", 20),
        ("small", "long", 6),
        ("middle", "mixed", 6),
        ("middle", "long", 4),
        ("wide", "mixed", 6),
    )
    for tune in ("full", "lora")
}
GPU_CASES: dict[str, dict[str, Any]] = {
    f"large-{tune}-{length // 1024}k": {
        "shape": "large",
        "tune": tune,
        "steps": 6,
        "batch": batch,
        "lengths": [length] * batch * 6,
    }
    for length, batch in ((2048, 8), (16384, 1))
    for tune in ("lora", "full")
}
CONTENDERS = ("temper", "loop", "trainer", "trl", "trl packed")
GPU_CONTENDERS = ("temper", "loop", "trl packed", "trl liger", "unsloth")


def lengths(kind: str, count: int, generator: random.Random) -> list[int]:
    """Draw lengths in tokens: instruction-like (median 100, a tail to 2048), or all of 4096."""
    if kind == "long":
        return [4096] * count
    return [min(2048, max(12, round(generator.lognormvariate(4.6, 1.0)))) for _ in range(count)]


def prepare(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the model, the rows as text, and the rows as tokens.

    Args:
        case: `shape` (a name or the sizes themselves), `kind` or `lengths`, `batch` (rows of an update; by default 16,
            or one that is long), `tune`, `steps`, `precision`.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    shape = dict(sizes_of(case))
    heads = shape.pop("heads")
    key_heads = shape.pop("key_heads", heads)
    words = {f"w{number}": number for number in range(shape["vocab_size"] - 1)} | {"</s>": shape["vocab_size"] - 1}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>")
    generator = random.Random(0)
    batch = case.get("batch", 1 if case.get("kind") == "long" else 16)
    sizes = case.get("lengths") or lengths(case["kind"], case["steps"] * batch, generator)
    longest = max(2048, *sizes)
    config = LlamaConfig(
        **shape,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=longest,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    model = folder / "model"
    device = "cuda" if torch.cuda.is_available() else "cpu"  # where billions of numbers are drawn in a moment
    with torch.device(device):
        LlamaForCausalLM(config).to(torch.bfloat16 if device == "cuda" else torch.float32).save_pretrained(model)
    tokenizer.save_pretrained(model)
    with (folder / "rows.jsonl").open("w") as rows, (folder / "tokens.jsonl").open("w") as tokens:
        for size in sizes:
            ids = [generator.randrange(shape["vocab_size"] - 1) for _ in range(size - 1)]
            cut = max(1, size // 3)
            prompt, answer = (" ".join(f"w{number}" for number in part) for part in (ids[:cut], ids[cut:]))
            rows.write(json.dumps({"prompt": prompt, "completion": " " + answer}) + "\n")
            mask = [0] * cut + [1] * (size - cut)
            tokens.write(json.dumps({"input_ids": [*ids, tokenizer.eos_token_id], "completion_mask": mask}) + "\n")
    return {
        **case,
        "folder": str(folder),
        "model": str(model),
        "rows": str(folder / "rows.jsonl"),
        "tokens": str(folder / "tokens.jsonl"),
        "batch": batch,
        "longest": longest,
        "num_rows": len(sizes),
        "rank": 16,
        "lr": 1e-4,
    }


def sizes_of(case: dict[str, Any]) -> dict[str, int]:
    """Return the sizes of a case's model."""
    shape = case["shape"]
    return MODELS[shape] if isinstance(shape, str) else shape


def measure(name: str, case: dict[str, Any], folder: Path, allocator: str) -> dict[str, float] | None:
    """Run a contender in a process of its own; None where it failed, with its last words on standard error."""
    file = folder / "case.json"
    file.write_text(json.dumps(case))
    tuned = ALLOCATOR if allocator == "tuned" else {}
    environment = {**os.environ, **tuned, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(HERE / "contenders.py"), name, str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not found:
        print(f"{name} failed:\n{done.stderr[-2000:]}", file=sys.stderr)
        return None
    result: dict[str, float] = json.loads(found[0].removeprefix("RESULT "))
    return result


def flops(case: dict[str, Any]) -> float:
    """Return the operations of Temper's steps for each token, by the shapes of the model (attention's scores not)."""
    shape = sizes_of(case)
    width, inner, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    keys = shape.get("key_heads", shape["heads"]) / shape["heads"]
    block = layers * ((2 + 2 * keys) * width * width + 3 * width * inner)
    head = 2 / 3 * shape["vocab_size"] * width  # two tokens of three are supervised
    return (6 if case["tune"] == "full" else 4) * (block + head)


def table(name: str, case: dict[str, Any], turns: list[dict[str, Any]]) -> list[str]:
    """Return the rows of a case: medians over turns, and ratios within turns with their range."""
    lines = [
        f"\n{name}, {len(turns)} turns",
        f"{'':12} {'tokens/s':>9} {'temper is':>20} {'peak MiB':>9} {'temper holds':>20} {'start s':>8} {'rate':>6}",
    ]
    for contender in dict.fromkeys(each for turn in turns for each in turn):
        both = [(turn["temper"], turn[contender]) for turn in turns if turn.get("temper") and turn.get(contender)]
        if not both:
            lines.append(f"{contender:12} failed")
            continue
        speed = statistics.median(other["tokens_per_second"] for _, other in both)
        memory = statistics.median(other["peak_bytes"] for _, other in both)
        start = statistics.median(other["first_step_seconds"] for _, other in both)
        rate = statistics.median(other["tokens_per_second"] * flops(case) / other["product_rate"] for _, other in both)
        times = spread([mine["tokens_per_second"] / other["tokens_per_second"] for mine, other in both])
        share = spread([mine["peak_bytes"] / other["peak_bytes"] for mine, other in both])
        lines.append(
            f"{contender:12} {speed:9,.0f} {times:>20} {memory / 2**20:9,.0f} {share:>20} {start:8.1f} {rate:6.0%}"
        )
    return lines


def spread(ratios: list[float]) -> str:
    """Return the median of ratios, with their range."""
    return f"{statistics.median(ratios):.2f} x ({min(ratios):.2f}-{max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = torch.cuda.is_available()
    known = {**CASES, **GPU_CASES}
    default = GPU_CASES if on_gpu else CASES
    parser.add_argument("--cases", default=",".join(default), help="of " + ", ".join(known))
    parser.add_argument("--contenders", default=",".join(GPU_CONTENDERS if on_gpu else CONTENDERS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--allocator", default="tuned", choices=["tuned", "plain"], help="the C library's")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    every: dict[str, Any] = {}
    if chosen.json and chosen.json.is_file():
        every = json.loads(chosen.json.read_text())
    for name in chosen.cases.split(","):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            case = prepare({**known[name], "precision": chosen.precision}, folder)
            turns: list[dict[str, Any]] = every.setdefault(name, [])
            for _ in range(chosen.repeats):
                names = chosen.contenders.split(",")
                turns.append({each: measure(each, case, folder, chosen.allocator) for each in names})
                if chosen.json:
                    chosen.json.write_text(json.dumps(every, indent=1) + "\n")
            print("\n".join(table(name, case, turns)), flush=True)


if __name__ == "__main__":
    main()
