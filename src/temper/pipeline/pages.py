"""One Markdown page per method and an index, made from the catalogue and from what was tried and measured.

`python -m temper.pipeline.pages FOLDER` writes them; with the name of another package behind it, that package's. What
combines and what was measured is read from the folder that holds FOLDER, or from the one that `--facts` names.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from temper.core.methods import AXES, Method, Settings
from temper.pipeline.catalogue import AxisPage, FieldPage, MethodPage, catalogue, fields
from temper.pipeline.facts import Facts


def write_method_pages(folder: Path, package: str = "temper", facts: Path | None = None) -> list[Path]:
    """Write a page per method of a package, and an index.

    Args:
        folder: where they are written.
        package: whose methods; any that offers some through the entry points.
        facts: the folder with what was tried and measured (`temper.pipeline.facts`); the one that holds `folder`
            where it is None.

    Returns:
        the files, the index first.

    Raises:
        DataError: a file among the facts that cannot be used.
    """
    everything = catalogue()
    source = folder.parent if facts is None else facts
    known = Facts.read(source, (method.path for axis in everything for method in axis.methods))
    axes = [
        AxisPage(axis.name, axis.question, tuple(it for it in axis.methods if _is_of(it, package)))
        for axis in everything
    ]
    written = [_write(folder / "README.md", _index(axes))]
    for axis in axes:
        for method in axis.methods:
            nested = dict(nested_settings(AXES[axis.name].methods()[method.name]))
            table = Path(os.path.relpath(source / "combinations.md", folder / axis.name)).as_posix()
            text = method_page(method, nested, known, table)
            written.append(_write(folder / axis.name / f"{method.name}.md", text))
    return written


def method_page(
    method: MethodPage, nested: dict[str, type[BaseModel]], facts: Facts | None = None, table: str = ""
) -> str:
    """Return a method's page as Markdown.

    Args:
        method: what the catalogue says.
        nested: settings inside its settings, by the name of their type.
        facts: what was tried and measured; None for nothing.
        table: where the table of all combinations lies, as seen from the page.
    """
    parts = [f"# {method.axis}: {method.name}", _linked(method.text)]
    parts += ["## Settings", _table(method.fields) if method.fields else "None."]
    for name, settings in nested.items():
        parts += [f"### {name}", _table(fields(settings))]
    if method.needs:
        parts += ["## Needs", _list(method.needs)]
    combines, effects = (facts.combines(method.path), facts.effects(method.path)) if facts is not None else ([], [])
    if combines:
        parts += ["## Combines with", f"As tried two by two on a tiny model ([all]({table})):", _list(combines)]
    if effects:
        parts += ["## Effect", *effects]
    source = "src/" + method.module.replace(".", "/") + ".py"
    place = f"[`{source}`](../../../{source})" if _is_of(method, "temper") else f"`{method.module}`"
    parts.append(f"Written in {place}. [All methods](../README.md)")
    return "\n\n".join(parts) + "\n"


def nested_settings(owner: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the settings that stand inside settings, by the name that their type has in the tables."""
    for field in owner.model_fields.values():
        for inner in _settings_in(field.annotation):
            yield inner.__name__.lower(), inner
            yield from nested_settings(inner)


def _settings_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings) and not issubclass(annotation, Method):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _settings_in(argument)


def _is_of(method: MethodPage, package: str) -> bool:
    return method.module == package or method.module.startswith(f"{package}.")


def _index(axes: Iterable[AxisPage]) -> str:
    parts = ["# Methods", "Made by `make docs` from the methods' own docstrings."]
    for axis in axes:
        if axis.methods:
            rows = [f"| [{it.name}]({axis.name}/{it.name}.md) | {_cell(it.summary)} |" for it in axis.methods]
            parts += [f"## {axis.name}", axis.question, "\n".join(["| method | what it does |", "|---|---|", *rows])]
    return "\n\n".join(parts) + "\n"


def _table(rows: Iterable[FieldPage]) -> str:
    lines = ["| setting | type | default | limits | what it is |", "|---|---|---|---|---|"]
    for field in rows:
        default = "required" if field.is_required else f"`{_cell(json.dumps(field.default, ensure_ascii=False))}`"
        cells = (f"`{field.name}`", _cell(field.type), default, _cell(field.limits), _cell(field.description))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _linked(text: str) -> str:
    linked = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
    return re.sub(r"(?:\n+|(?<=\.) )(Papers?|Sources?|Symbols|Deviations?):", r"\n\n**\1:**", linked)


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m temper.pipeline.pages", description="Write the methods' pages.")
    parser.add_argument("folder", type=Path, help="where they are written")
    parser.add_argument("package", nargs="?", default="temper", help="whose methods")
    parser.add_argument("--facts", type=Path, help="folder with combinations.json and effects/; the one around FOLDER")
    chosen = parser.parse_args()
    for file in write_method_pages(chosen.folder, chosen.package, chosen.facts):
        print(file)


if __name__ == "__main__":
    main()
