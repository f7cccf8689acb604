"""Files that are whole or absent, and errors that say which."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from temper.core.errors import DataError
from temper.core.files import whole_folder, write_json
from temper.data.example import Origin, Row
from temper.data.rows import Rows, write_file

LIMIT = 2**12


@contextmanager
def little_room() -> Iterator[None]:
    """Let no file grow beyond a page: writing more fails as on a full disk, with an error that names nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def rows() -> list[Row]:
    return [Row("text", {"text": "x" * LIMIT}, {}, Origin("made", line)) for line in range(1, 10)]


def in_a_folder(fill: Callable[[Path], object]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with whole_folder(path) as folder:
            fill(folder)

    return write


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_json(path, "x" * 10 * LIMIT),
        in_a_folder(lambda folder: (folder / "text").write_text("x" * 10 * LIMIT)),
        in_a_folder(lambda folder: np.save(folder / "values.npy", np.zeros(LIMIT))),
        in_a_folder(lambda folder: write_file(folder / "rows.arrow", rows())),
    ],
    ids=["json", "text", "numpy", "arrow"],
)
def test_what_finds_no_room_is_named_and_absent(tmp_path: Path, write: Any) -> None:
    path = tmp_path / "wanted"
    with little_room(), pytest.raises(OSError) as caught:
        write(path)
    assert str(caught.value.filename) == str(path)
    # NumPy says how much it wrote, and not why no more.
    assert caught.value.errno == (errno.EIO if "written" in str(caught.value) else errno.EFBIG)
    assert not path.exists()


@pytest.mark.parametrize("damage", [b"", b"ARROW1 and then nothing", None])
def test_rows_that_are_damaged_are_named_with_what_to_do(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "rows.arrow"
    write_file(path, rows())
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    with pytest.raises(DataError, match=r"rows\.arrow: is damaged .*; remove its folder, and it is made again"):
        Rows.map_file(path, "")
