"""Where a run ran: versions, machine and git state, for `run.json` and `stage.json`."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from temper.core.version import package_version, temper_version

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "pyarrow", "numpy", "pydantic")


def versions() -> dict[str, str]:
    """Return the versions of Temper, Python and what results depend on."""
    found = {package: package_version(package) for package in PACKAGES}
    installed = {package: text for package, text in found.items() if text is not None}
    return {"temper": temper_version(), "python": platform.python_version(), **installed}


def num_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if platform.system() == "Linux" else os.cpu_count() or 1


def processor_name() -> str:
    """Return the processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def memory_bytes() -> int | None:
    """Return the memory that this process may use: the machine's, or its container's where that is less."""
    if platform.system() not in ("Linux", "Darwin"):
        return None
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    written = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(written)) if written.isdigit() else total


def machine() -> dict[str, Any]:
    """Describe the machine: system, processor, cores, memory (bytes), accelerators."""
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "system": platform.platform(terse=True),
        "processor": processor_name(),
        "cores": num_cores(),
        "memory_bytes": memory_bytes(),
        "accelerators": names,
    }


def git_state() -> dict[str, Any] | None:
    """Return commit and cleanness of the working folder's repository, None where there is none."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "clean": not changed}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
