"""Names by content: the same settings and inputs give the same name on every machine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def hash_json(value: Any) -> str:
    """Return 16 hex digits that name a plain JSON value; the order of keys does not count."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_file(path: Path) -> str:
    """Return 16 hex digits that name a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def hash_files(paths: list[Path]) -> str:
    """Return 16 hex digits that name several files by base name and content, in the given order."""
    return hash_json([[path.name, hash_file(path)] for path in paths])
