"""What the training stages of a recipe learn from, before anything runs."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from temper.core.errors import SettingError, nearest
from temper.data.encode import Encoder, RowError
from temper.data.example import Example
from temper.data.show import legend, mark_example, show_example
from temper.data.sources.stage import StageData
from temper.engine.fit import check_formats
from temper.engine.settings import FitSettings
from temper.pipeline.recipe import Recipe
from temper.pipeline.shelf import CACHE


def preview(
    recipe: Recipe, console: Console, *, num_examples: int = 3, only: str | None = None, runs: Path = Path("runs")
) -> None:
    """Print the first examples of every source of every training stage, as the model will see them.

    Args:
        recipe: the recipe.
        console: where to; without colour, what is supervised stands between marks.
        num_examples: of each source.
        only: the one stage to show.
        runs: folder under which prepared data is kept.

    Raises:
        SettingError: a stage that does not train. DataError: data that cannot be read.
    """
    training = [step.name for step in recipe.stages if isinstance(step.stage, FitSettings)]
    if only is not None and only not in training:
        raise SettingError("stage", only, "is no training stage of this recipe", nearest(only, training))
    cache = runs / CACHE
    cache.mkdir(parents=True, exist_ok=True)
    tokenizer = recipe.base.tokenizer(cache, recipe.seed)
    room = recipe.base.num_positions(cache, recipe.seed)
    in_colour = console.color_system is not None
    if in_colour:
        console.print(legend())
    for name, stage in ((step.name, step.stage) for step in recipe.stages):
        if not isinstance(stage, FitSettings) or only not in (None, name):
            continue
        encoder = Encoder(tokenizer, min(stage.max_length, room), stage.truncate)
        for source in stage.sources():
            console.print(Text(f"\n{name}: {source.label}", style="bold"))
            if isinstance(source, StageData):
                console.print(Text(f"made by stage {source.stage!r}: not there before it runs"))
                continue
            rows = source.open("train", cache, recipe.on_bad_rows)
            if rows.bad:
                first = rows.bad[0]
                said = f"{len(rows.bad)} rows put aside, the first: {first.origin}: {first.reason}"
                console.print(Text(said, style="yellow"))
            try:
                check_formats(rows, stage.objective)
            except SettingError as error:
                console.print(Text(str(error), style="bold red"))
                continue
            for row in rows.take(range(min(num_examples, len(rows)))):
                try:
                    encoded = stage.objective.encode(row, encoder)
                except RowError as error:
                    console.print(Text(f"{row.origin}: cannot be trained on: {error}", style="bold red"))
                    continue
                for sequences in encoded:
                    example = Example(sequences, row.columns, row.origin)
                    if in_colour:
                        console.print(show_example(example, tokenizer), soft_wrap=True)
                    else:
                        console.print(Text(mark_example(example, tokenizer)), soft_wrap=True)
