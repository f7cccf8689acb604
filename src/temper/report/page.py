"""The report of a run: one HTML page that needs nothing beside itself.

Decisions: no network, no external file, no plotting library; a content security policy in the page forbids what is
not inline; every text of a run is escaped by Jinja; without JavaScript everything is there, and with it curves can
be read off and blocks copied. The page is written whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import yaml

from temper.report import format as fmt
from temper.report import views
from temper.report.curves import stage_panels, suite_panels
from temper.report.graph import Node, draw, is_tall
from temper.report.read import RunRecord, mapping, read_run

PAGE = "report.html"
MAX_TEXT = 1200
MAX_REASONS = 12


def write_report(run_folder: Path) -> Path:
    """Write `report.html` into a run's folder, complete or not, and return its path.

    Raises:
        DataError: the folder holds no readable `run.json`.
    """
    html = render(read_run(run_folder))
    path = run_folder / PAGE
    partial = path.with_name(f"{PAGE}.{os.getpid()}.partial")
    partial.write_text(html, encoding="utf-8")
    partial.replace(path)
    return path


def render(run: RunRecord) -> str:
    """Return a run's page as HTML."""
    table = views.gain_table(run)
    nodes = _nodes(run)
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            run=run,
            table=table,
            headline=views.headline(table),
            comparisons=list(views.comparisons(table, run)),
            suite_panels=suite_panels(table),
            graph_wide=draw(nodes, "tall" if is_tall(nodes) else "wide"),
            graph_narrow=draw(nodes, "narrow"),
            is_tall=is_tall(nodes),
            base_name=base_name(run.recipe),
            num_data_edges=sum(len(node.data) for node in nodes),
            curves=[(stage, panels) for stage in run.stages if (panels := stage_panels(stage))],
            costs=views.cost_rows(run),
            total_seconds=views.total_seconds(run),
            samples=views.sample_groups(run, table),
            warnings=_warnings(run),
            unfinished=[stage for stage in run.stages if stage.status != "done"],
            run_error=_run_error(run),
            other_details=views.other_details,
            recipe_text=to_yaml(run.recipe),
            seed=run.recipe.get("seed"),
            max_reasons=MAX_REASONS,
        )
    )


@cache
def environment() -> jinja2.Environment:
    """Return what fills in the pages' templates; every text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("number", "interval", "scale_of", "count", "flops", "size", "duration", "share", "moment", "plural"):
        environment.filters[name] = getattr(fmt, name)
    environment.filters["clip"] = lambda text: fmt.clip(text, MAX_TEXT)
    environment.filters["yaml"] = to_yaml
    environment.filters["columns"] = lambda count: min((4, 3), key=lambda across: -count % across)
    environment.filters["words"] = lambda items: fmt.words([str(item) for item in items])
    environment.globals["missing"] = fmt.MISSING
    return environment


def _nodes(run: RunRecord) -> list[Node]:
    nodes = [Node("base", "base", "done", (base_name(run.recipe),))]
    for stage in run.stages:
        lines = tuple(views.describe_stage(stage))
        nodes.append(Node(stage.name, stage.kind, stage.status, lines, stage.models, stage.data))
    return nodes


def base_name(recipe: Mapping[str, Any]) -> str:
    """Return the base of a recipe in a few words."""
    base = recipe.get("base")
    if not isinstance(base, dict):
        return str(base or "unknown base")
    if base.get("new"):
        new = mapping(base["new"])
        shape = ", ".join(f"{key} {new[key]}" for key in ("width", "layers", "heads", "vocabulary") if key in new)
        return f"new {new.get('family', 'model')} with random weights" + (f" ({shape})" if shape else "")
    revision = base.get("revision")
    return str(base.get("path") or base) + (f" at {revision}" if revision else "")


def to_yaml(value: Any) -> str:
    """Return plain values as YAML in their own order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None)


class _Dumper(yaml.SafeDumper):
    """Quotes text that a reader of YAML 1.2 would take for a number (`1e-3`)."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    try:
        float(text)
    except ValueError:
        return dumper.represent_str(text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')


_Dumper.add_representer(str, _represent_text)


def _warnings(run: RunRecord) -> list[tuple[str, str]]:
    """Return (stage, text), the run's own first; a warning that run and stage both hold is shown once."""
    own = [(stage.name, text) for stage in (run.base, *run.stages) for text in stage.warnings]
    known = {text for _, text in own} | {f"{name}: {text}" for name, text in own}
    return [("run", text) for text in run.warnings if text not in known] + own


def _run_error(run: RunRecord) -> str:
    """Return why the run stopped, where no stage says it itself."""
    return "" if any(stage.error and stage.error in run.error for stage in run.stages) else run.error
