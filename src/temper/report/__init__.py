"""What a run says at its end: one HTML page, and a table in the terminal."""

from __future__ import annotations

from temper.report.page import write_report
from temper.report.terminal import print_table

__all__ = ["print_table", "write_report"]
