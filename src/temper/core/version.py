"""Which Temper this is."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


def package_version(package: str) -> str | None:
    """Return the version of an installed distribution, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def temper_version() -> str:
    """Return Temper's version; `source` where it runs without being installed."""
    return package_version("temper-llm") or "source"
