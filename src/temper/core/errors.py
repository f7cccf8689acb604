"""Errors that a user can act on.

Every message names the key, the value, the reason and the fix; data errors also name file and line.
Invariants of our own use `assert` and never these classes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class TemperError(Exception):
    """Base of every error meant for a user; the command line prints it without a traceback."""


class SettingError(TemperError, ValueError):
    """A setting that cannot work.

    Args:
        key: dotted path of the setting, as the user wrote it (`stages[1].train.tune.lora.rank`).
        value: what the user gave.
        reason: why it cannot work, as the rest of a sentence that begins with the value.
        fix: what to do instead.
    """

    def __init__(self, key: str, value: object, reason: str, fix: str) -> None:
        self.key, self.value, self.reason, self.fix = key, value, reason, fix
        super().__init__(f"{key}: {value!r} {reason}; {fix}")


class DataError(TemperError, ValueError):
    """A row or a file of data that cannot be used; names the file, and the line where there is one."""

    def __init__(self, file: str | Path, line: int | None, reason: str, fix: str) -> None:
        self.file, self.line, self.reason, self.fix = str(file), line, reason, fix
        where = f"{file}:{line}" if line is not None else f"{file}"
        super().__init__(f"{where}: {reason}; {fix}")


class ModelError(TemperError, ValueError):
    """A model that cannot be loaded, or whose parts cannot be found."""


class MissingExtra(TemperError, ImportError):
    """An optional dependency that is used and not installed.

    Args:
        package: the distribution that is missing.
        extra: Temper's extra that brings it.
        purpose: what needs it.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}, which is not installed; pip install 'temper-llm[{extra}]'")


class TrainingError(TemperError, RuntimeError):
    """Training that cannot go on: a loss that is not finite, or one that jumped."""


class StageError(TemperError, RuntimeError):
    """A stage that failed; names it, the cause and how to go on. The cause is chained."""


class GateError(TemperError, RuntimeError):
    """A kept suite fell by more than a stage's gate allows."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the text "did you mean 'x'?", or the list of what is known where nothing is near."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + ", ".join(names) if names else "nothing is known here"
