"""Temper takes a language model through stages, and says after each what was gained and what was lost.

Example:
    A recipe, from Python:

    ```python
    import temper

    recipe = temper.Recipe.parse(
        {
            "base": "lab:tiny",
            "measure": {"gain": ["lab/reverse"], "keep": ["lab/copy"]},
            "stages": [{"name": "adapt", "train": {"data": ["lab/reverse"], "tune": "lora", "steps": 300}}],
        }
    )
    result = temper.run(recipe)
    print(result.table())
    ```

    The pieces, without a recipe:

    ```python
    from pathlib import Path

    model = temper.load_model("lab:tiny")
    rows = temper.open_rows("lab/reverse")
    fitted = temper.fit(model, rows, temper.FitSettings(tune="lora", lr=1e-3, steps=300))
    fitted.tuning.save(Path("out"))
    fitted.tuning.detach()
    temper.read_delta(Path("out/delta")).apply(model)
    report = temper.evaluate(model, ["lab/reverse", "lab/copy"])
    ```

Decision: `import temper` imports nothing heavy; a name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from temper.core.errors import TemperError
    from temper.delta.base import Delta, read_delta
    from temper.engine.fit import FitSettings, fit
    from temper.models.generate import generate
    from temper.models.load import save_model
    from temper.models.model import Model
    from temper.pipeline.compare import compare
    from temper.pipeline.measuring import evaluate
    from temper.pipeline.models import load_model, open_rows
    from temper.pipeline.recipe import Recipe
    from temper.pipeline.result import Run
    from temper.pipeline.run import run

_HOMES = {
    "Delta": "temper.delta.base",
    "FitSettings": "temper.engine.fit",
    "Model": "temper.models.model",
    "Recipe": "temper.pipeline.recipe",
    "Run": "temper.pipeline.result",
    "TemperError": "temper.core.errors",
    "compare": "temper.pipeline.compare",
    "evaluate": "temper.pipeline.measuring",
    "fit": "temper.engine.fit",
    "generate": "temper.models.generate",
    "load_model": "temper.pipeline.models",
    "open_rows": "temper.pipeline.models",
    "read_delta": "temper.delta.base",
    "run": "temper.pipeline.run",
    "save_model": "temper.models.load",
}

__all__ = [
    "Delta",
    "FitSettings",
    "Model",
    "Recipe",
    "Run",
    "TemperError",
    "compare",
    "evaluate",
    "fit",
    "generate",
    "load_model",
    "open_rows",
    "read_delta",
    "run",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'temper' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
