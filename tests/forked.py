"""Commands of Temper without the seconds in which Python imports what they stand on.

They are forked from a process that has imported it and done nothing, with folder, environment and streams as a shell
would set them. That the installed program starts by itself is tested where it is started so.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

IMPORTED = [
    "temper.cli",
    "temper.pipeline.compare",
    "temper.pipeline.plan",
    "temper.pipeline.probe",
    "temper.report",
    "transformers.models.llama.modeling_llama",
]


@dataclass(frozen=True)
class Done:
    """What came of a command."""

    code: int
    out: str
    err: str


def temper(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str], packages: Sequence[Path] = ()
) -> Done:
    """Run `temper` with arguments, in a folder, and return how it ended and what it wrote.

    Args:
        packages: folders in which Python finds further packages.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with tempfile.TemporaryDirectory() as place:
        streams = [Path(place) / name for name in ("out", "err")]
        process = context.Process(target=_work, args=(arguments, folder, dict(environment), packages, streams))
        process.start()
        process.join()
        out, err = (stream.read_text(encoding="utf-8") for stream in streams)
    assert process.exitcode is not None
    return Done(process.exitcode, out, err)


def _work(
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    packages: Sequence[Path],
    streams: Sequence[Path],
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [str(package) for package in packages]
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, stream in enumerate(streams, 1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), number)
    from temper.cli import main

    main(arguments)
