"""When two texts are the same answer: the settings that say so, for suites and verifiers."""

from __future__ import annotations

import re
import string

from pydantic import Field, field_validator

from temper.core.methods import Settings


class Matching(Settings):
    """How an answer is compared with the expected one."""

    extract: str | None = Field(
        None,
        description="regular expression that finds the answer in a longer text, in what the model wrote and in what is "
        "expected: its first group, or all of it; the last match counts, and no match is wrong",
    )
    strip: bool = Field(True, description="white space at both ends does not count")
    ignore_case: bool = Field(False, description="upper and lower case are the same")
    ignore_punctuation: bool = Field(False, description="ASCII punctuation does not count")

    @field_validator("extract")
    @classmethod
    def _compiles(cls, written: str | None) -> str | None:
        try:
            re.compile(written or "")
        except re.error as error:
            raise ValueError(f"is no regular expression ({error})") from error
        return written

    def matches(self, expected: str, output: str) -> bool:
        """Tell whether what was written is the expected answer."""
        written: str | None = output
        if self.extract is not None:
            expected = _find(self.extract, expected) or expected
            written = _find(self.extract, output)
        return written is not None and self._normalised(written) == self._normalised(expected)

    def _normalised(self, text: str) -> str:
        if self.ignore_punctuation:
            text = text.translate(str.maketrans("", "", string.punctuation))
        if self.ignore_case:
            text = text.casefold()
        return text.strip() if self.strip else text


def _find(pattern: str, text: str) -> str | None:
    """Return the first group (or all) of the last match."""
    found = list(re.finditer(pattern, text))
    if not found:
        return None
    return found[-1][1] if found[-1].re.groups else found[-1][0]
