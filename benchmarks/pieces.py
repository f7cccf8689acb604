"""The engine's own pieces beside what they take the place of, forward and backward, on this processor.

    python benchmarks/pieces.py [--repeats 5]

Attention by matrix products (`temper.models.cpu_attention`) beside PyTorch's fused one, both in bf16, at about the
same number of tokens; the projection with its softmax (`temper.signals.head`) beside a plain cross-entropy over all
logits. The two are timed in turns; a row gives the medians, and the ratio with its range over the turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from temper.models.cpu_attention import Order, attend
from temper.signals.head import CHUNK_VALUES, SummedLogprobs

HEADS, WIDTH = 4, 64


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(name: str, theirs: Callable[[], None], ours: Callable[[], None], repeats: int) -> None:
    """Time two pieces of work in turns and print a row."""
    theirs(), ours()
    pairs = [(seconds(theirs), seconds(ours)) for _ in range(repeats)]
    ratios = [one / other for one, other in pairs]
    one, other = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"{name:34} {one:9.1f} {other:9.1f} {statistics.median(ratios):7.2f} x ({min(ratios):.2f}-{max(ratios):.2f})")


def attention(documents: int, length: int, repeats: int) -> None:
    made = [torch.randn(documents, HEADS, length, WIDTH).bfloat16().requires_grad_() for _ in range(3)]
    upstream = torch.randn(documents, HEADS, length, WIDTH).bfloat16()
    flat = [one.detach().transpose(1, 2).flatten(0, 1).requires_grad_() for one in made]
    flat_upstream = upstream.transpose(1, 2).flatten(0, 1)
    order = Order.of([(documents, length)], HEADS)
    compare(
        f"attention, {documents} x {length:,} tokens",
        lambda: F.scaled_dot_product_attention(*made, is_causal=True).backward(upstream),
        lambda: attend(*flat, [(documents, length)], (order, order), scale=WIDTH**-0.5).backward(flat_upstream),
        repeats,
    )


def head(tokens: int, vocabulary: int, width: int, repeats: int) -> None:
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = torch.randn(vocabulary, width).mul_(0.02).requires_grad_()
    targets, ones = torch.randint(vocabulary, (tokens,)), torch.ones(tokens)

    def theirs() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            logits = F.linear(hidden, weight)
            F.cross_entropy(logits.float(), targets, reduction="sum").backward()

    def ours() -> None:
        chunk = max(1, CHUNK_VALUES // vocabulary)
        total: Tensor = SummedLogprobs.apply(hidden, weight, targets, ones, 1.0, chunk, torch.bfloat16)[0]
        total.backward()

    compare(f"head, {tokens:,} x {vocabulary:,} of {width}", theirs, ours, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    print(f"{torch.get_num_threads()} threads\n{'':34} {'before':>9} {'ours':>9} ms")
    for documents, length in ((64, 32), (16, 128), (8, 256), (4, 512), (2, 1024), (1, 4096)):
        attention(documents, length, repeats)
    for tokens, vocabulary, width in ((1400, 4096, 256), (1400, 32768, 768), (700, 131072, 256)):
        head(tokens, vocabulary, width, repeats)


if __name__ == "__main__":
    main()
