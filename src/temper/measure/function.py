"""Any metric of what the model writes, by a Python function that the recipe names."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

from pydantic import Field

from temper.core.errors import SettingError, nearest
from temper.core.hashing import hash_file, hash_json
from temper.measure.base import Unit
from temper.measure.examples import Question, row_values
from temper.measure.generation import GenerationSuite

Metric = Callable[[str, str, Mapping[str, Any]], float | bool]


class Function(GenerationSuite, name="function"):
    """The mean of `function(prompt, output, row)` over what the model writes.

    The function gets the prompt as text (without worked examples), what the model wrote, and the row as a mapping of
    all that it holds; it returns a number, or a bool for right or wrong. Its file is part of the suite's name by
    content: a changed function is measured anew (what it imports is not looked at).
    """

    example: ClassVar[dict[str, Any]] = {**GenerationSuite.example, "function": "metric.py:brevity"}

    function: str = Field(pattern=r"^.+:[A-Za-z_]\w*$", description="`module:function` or `path/to/file.py:function`")
    unit: Literal["share", "number"] = Field("share", description="share: scores from 0 to 1; number: anything else")
    higher_is_better: bool = Field(True, description="whether a higher score is a better one")

    @property
    def metric(self) -> str:
        return self.function.rpartition(":")[2]

    def kind(self) -> tuple[Unit, bool]:
        return self.unit, self.higher_is_better

    def fingerprint(self) -> str:
        source = inspect.getsourcefile(_module_of(self.function))
        return hash_json([super().fingerprint(), hash_file(Path(source)) if source else ""])

    def judge(self, questions: Sequence[Question], outputs: Sequence[str]) -> list[float] | list[bool]:
        function = load_function(self.function)
        pairs = zip(questions, outputs, strict=True)
        scores = []
        for question, output in pairs:
            try:
                scores.append(function(question.text, output, row_values(question.row)))
            except Exception as error:
                reason = f"failed on {question.row.origin} ({type(error).__name__}: {error})"
                raise SettingError("function", self.function, reason, "mend the function") from error
        if all(isinstance(score, bool) for score in scores):
            return [bool(score) for score in scores]
        for score in scores:
            if not isinstance(score, int | float) or not math.isfinite(score):
                raise SettingError("function", self.function, f"returned {score!r}", "return a finite number or a bool")
            if self.unit == "share" and not 0 <= score <= 1:
                raise SettingError("function", self.function, f"returned {score!r}, not 0 to 1", "set unit: number")
        return [float(score) for score in scores]


def load_function(written: str) -> Metric:
    """Return the function that `module:function` or `path.py:function` names.

    Raises:
        SettingError: there is no such file, module or function.
    """
    module, name = _module_of(written), written.rpartition(":")[2]
    function: Metric | None = vars(module).get(name)
    if function is None or not callable(function):
        names = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise SettingError("function", written, f"names no function of {module.__name__}", nearest(name, names))
    return function


def _module_of(written: str) -> ModuleType:
    place = written.rpartition(":")[0]
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise SettingError(
                "function", written, f"cannot be imported ({error})", "install it, or write the path of a .py file"
            ) from error
    path = Path(place)
    if not path.is_file():
        raise SettingError(
            "function", written, "names a file that is not there", "paths start at the folder of the run"
        )
    return _load_file(path)


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise SettingError(
            "function", str(path), f"cannot be run ({type(error).__name__}: {error})", "mend it"
        ) from error
    return module
