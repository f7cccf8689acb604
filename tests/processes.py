"""Several processes in one test: forked from the test's own, so that nothing is imported twice."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from temper.engine.distributed import World
from temper.engine.layout import Layout, whole
from training import make_loop

Work = Callable[[World], None]


def start(size: int, work: Work, layout: Layout | None = None) -> list[int]:
    """Fork `size` processes that join one world and work; return their process ids, by rank."""
    torch.set_num_threads(1)  # a forked process has no other threads
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    pids = []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            try:
                with World.join(layout) as world:
                    work(world)
            except BaseException:
                traceback.print_exc(file=sys.stderr)
                sys.stderr.flush()
                os._exit(1)
            os._exit(0)
        pids.append(pid)
    return pids


def wait(pids: Sequence[int], seconds: float = 300.0) -> list[int]:
    """Return the exit codes, by rank; whoever still runs after `seconds` is killed, and has code -9."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + seconds
    while len(codes) < len(pids):
        for pid in set(pids) - set(codes):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                codes[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


def together(size: int, work: Work, layout: Layout | None = None) -> None:
    """Do work on `size` processes, all of which must end well."""
    assert wait(start(size, work, layout)) == [0] * size


def trained_divided(folder: Path, **settings: Any) -> dict[str, Tensor]:
    """Return what a loop has trained that two processes share, each with a half of every tensor."""

    def work(world: World) -> None:
        loop = make_loop(folder, world=world, **settings)
        loop.run()
        found = {name: whole(parameter.detach()).clone() for name, parameter in loop.trained}
        if world.is_main:
            save_file(found, folder / "trained.safetensors")

    together(2, work, Layout.parse("fsdp=2"))
    return load_file(folder / "trained.safetensors")
