"""What a machine has and lacks for training."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from temper.engine.precision import has_fast_bf16
from temper.pipeline.machine import memory_bytes, num_cores, processor_name, versions
from temper.report.format import size

LOW_DISK_BYTES = 5 * 2**30
LOW_MEMORY_BYTES = 4 * 2**30
EXTRAS = {
    "hub": ("datasets", "data sets of the hub"),
    "tensorboard": ("tensorboard", "curves in TensorBoard"),
    "wandb": ("wandb", "curves in Weights & Biases"),
    "harness": ("lm_eval", "tasks of lm-evaluation-harness"),
}
ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")
ALLOCATOR_HINT = (
    "on many machines training is 1.3 to 1.6 times faster when page faults are saved: start the command with "
    "MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456, or preload jemalloc"
)
WAITING_HINT = (
    "threads that wait for one another take what others use: training on several is then up to ten times slower; "
    "start the command with OMP_WAIT_POLICY=PASSIVE (a fifth slower where nothing else runs), or with OMP_NUM_THREADS=1"
)
STAT = Path("/proc/stat")
WATCHED_SECONDS = 0.3


class Finding(NamedTuple):
    """One thing that was looked at."""

    name: str
    value: str
    is_good: bool | None = None
    """None where it is neither good nor bad"""
    hint: str = ""


def examine(folder: Path = Path()) -> list[Finding]:
    """Look at the machine; takes about a second.

    Args:
        folder: where runs would be written.
    """
    found = versions()
    free = shutil.disk_usage(folder).free
    memory = memory_bytes()
    return [
        Finding("temper", found["temper"]),
        Finding("python", f"{found['python']} ({sys.executable})"),
        Finding("system", platform.platform(terse=True)),
        Finding("processor", processor_name()),
        Finding("cores", f"{num_cores()}, torch uses {torch.get_num_threads()}"),
        Finding(
            "memory",
            "unknown" if memory is None else size(memory),
            None if memory is None else memory >= LOW_MEMORY_BYTES,
            "" if memory is None or memory >= LOW_MEMORY_BYTES else "enough for tiny models only",
        ),
        Finding(
            "disk",
            f"{size(free)} free",
            free >= LOW_DISK_BYTES,
            "" if free >= LOW_DISK_BYTES else "runs keep every stage; choose another place with --runs",
        ),
        Finding("torch", f"{found['torch']} ({'CUDA ' + torch.version.cuda if torch.version.cuda else 'CPU'} build)"),
        Finding("transformers", found["transformers"]),
        *_accelerators(),
        _bf16(),
        _allocator(),
        *_other_work(),
        *(_extra(extra, module, purpose) for extra, (module, purpose) in EXTRAS.items()),
    ]


def _accelerators() -> list[Finding]:
    count = torch.cuda.device_count()
    if not count:
        return [Finding("accelerator", "none", None, "training runs on the processor")]
    properties = [torch.cuda.get_device_properties(index) for index in range(count)]
    return [Finding(f"accelerator {i}", f"{p.name}, {size(p.total_memory)}", True) for i, p in enumerate(properties)]


def _bf16() -> Finding:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fp32, bf16 = _products_per_second(torch.float32, device), _products_per_second(torch.bfloat16, device)
    is_fast = has_fast_bf16(device)
    return Finding(
        "bf16",
        f"{'in hardware' if is_fast else 'not in hardware'}: {bf16 / fp32:.2g} times the speed of fp32 "
        f"({fp32 / 1e9:,.0f} GFLOP/s)",
        is_fast,
        "" if is_fast else "precision: auto computes in fp32 here",
    )


def _products_per_second(dtype: torch.dtype, device: torch.device, side: int = 384) -> float:
    """Return the floating-point operations per second of a matrix product; the best of three."""
    matrix = torch.ones(side, side, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        float((matrix @ matrix)[0, 0])
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def _other_work() -> list[Finding]:
    """Look for a moment at how many cores other processes keep busy (Linux)."""
    first = _times()
    if first is None:
        return []
    time.sleep(WATCHED_SECONDS)
    second = _times()
    assert second is not None
    busy, every = (two - one for one, two in zip(first, second, strict=True))
    cores = STAT.read_text(encoding="utf-8").count("\ncpu")
    used = cores * max(0.0, busy) / every
    is_free = cores - used > torch.get_num_threads() - 0.5
    hint = "" if is_free or torch.get_num_threads() == 1 else WAITING_HINT
    return [Finding("other work", f"{used:.1f} of {cores} cores are busy with it", not hint, hint)]


def _times() -> tuple[float, float] | None:
    """Return the ticks that other processes' work took since the system started, and all ticks."""
    if not STAT.is_file():
        return None
    ticks = [float(one) for one in STAT.read_text(encoding="utf-8").splitlines()[0].split()[1:9]]
    own = os.times()
    mine = (own.user + own.system) * os.sysconf("SC_CLK_TCK")
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle - mine, sum(ticks)


def _allocator() -> Finding:
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return Finding("allocator", "the system's")
    loaded = maps.read_text(encoding="utf-8", errors="replace")
    for name in ALLOCATORS:
        if name in loaded:
            return Finding("allocator", name, True)
    return Finding("allocator", "the C library's", None, ALLOCATOR_HINT)


def _extra(extra: str, module: str, purpose: str) -> Finding:
    if find_spec(module) is not None:
        return Finding(f"extra {extra}", f"installed ({purpose})", True)
    return Finding(f"extra {extra}", f"not installed ({purpose})", None, f"pip install 'temper-llm[{extra}]'")
