"""Where methods stand in a recipe: read from the fields' types, for any set of methods.

Decisions:
- A place is a field of a stage kind, or of a method that has a place itself, which takes methods of an axis (a skill
  belongs into the lab's source). No method, axis or stage is named here.
- A stage is preferred to a method. Then a host that is asked for or stands already is preferred: so one of two methods
  becomes a setting of the other where the types allow it.
- A list holds as many as are asked for, in the stead of its example's first items. A field of one method holds one: two
  methods that need it exclude each other, and that is an answer of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pydantic import BaseModel

from temper.core.methods import AXES, Method, axes_in, methods_in
from temper.data.sources.stage import StageData
from temper.stages.base import Stage


class ExclusiveError(Exception):
    """Two methods need one place, which holds one."""


@dataclass(frozen=True)
class Place:
    """Where methods of an axis are written: a field of a stage kind, or of a method that has a place itself."""

    host: type[Method]
    field: str
    is_list: bool

    @property
    def is_inside(self) -> bool:
        """Whether it lies inside of a method, and not of a stage itself."""
        return self.host.axis != Stage.axis


def find_places() -> dict[str, list[Place]]:
    """Return the places of each axis that has any, the likeliest first, by the axis' name."""
    hosts = [method for axis in AXES.values() for method in axis.methods().values()]
    found: dict[str, list[Place]] = {}
    for host in hosts:
        for axis, name, is_list in axes_of(host):
            if axis != host.axis:
                found.setdefault(axis, []).append(Place(host, name, is_list))
    return {axis: sorted(places, key=partial(_rank, axis)) for axis, places in found.items()}


def _rank(axis: str, place: Place) -> tuple[bool, bool, int, str]:
    """Put a stage before a method, one of the axis' own name before others, then the one with most choices."""
    host = place.host
    return place.is_inside, host.method_name != axis, -len(list(axes_of(host))), host.method_name


def axes_of(owner: type[BaseModel]) -> Iterator[tuple[str, str, bool]]:
    """Yield the axes that a class' fields take: axis, field as it is written, and whether it takes a list."""
    for name, info in owner.model_fields.items():
        for axis, is_list in axes_in(info.annotation):
            yield axis, info.alias or name, is_list


@dataclass
class Draft:
    """The stages of a recipe while methods are put into them, each stage and method standing once."""

    places: Mapping[str, Sequence[Place]]
    asked: Sequence[type[Method]]
    """what the recipe is to hold"""
    standing: dict[type[Method], dict[str, Any]] = field(default_factory=dict)
    """the settings of each method that was put, stages included"""
    taken: dict[tuple[type[Method], str], list[type[Method]]] = field(default_factory=dict)
    """by host and field, what was asked for and stands there, itself or as a setting of what does"""

    def stages(self) -> dict[str, dict[str, Any]]:
        """Return the settings of each stage by its kind, in the order in which they were put."""
        return {host.method_name: own for host, own in self.standing.items() if host.axis == Stage.axis}

    def put(self, method: type[Method], asked: type[Method] | None = None) -> None:
        """Write a method into its place, and before that what it stands in.

        Args:
            asked: for which of the methods asked for; itself by default.

        Raises:
            ExclusiveError: another method that was asked for stands there.
            PydanticCustomError: its example does not fit it.
        """
        if method in self.standing:
            return
        own = dict(method.example)
        if method.axis != Stage.axis:
            place = self._choose(method)
            self.put(place.host, asked or method)
            self._write(place, method, own, asked or method)
        self.standing[method] = own

    def _choose(self, method: type[Method]) -> Place:
        """Return the place that suits best; no stage is given its own data to read."""
        own_data = _stages_read(method)
        axes = {one.axis for one in self.asked}

        def order(place: Place) -> tuple[bool, bool, int]:
            # What stands inside of a method must share it with what else needs its place; what stands in a stage
            # need not, since a recipe has room for others.
            shared = len(axes & {axis for axis, _, _ in axes_of(place.host)}) if place.is_inside else 0
            return place.is_inside, place.host not in (*self.asked, *self.standing), -shared

        places = self.places[method.axis]
        return min((it for it in places if it.is_inside or it.host.method_name not in own_data), key=order)

    def _write(self, place: Place, method: type[Method], own: dict[str, Any], asked: type[Method]) -> None:
        host = self.standing[place.host]
        taken = self.taken.setdefault((place.host, place.field), [])
        host.update(method.beside)
        if place.is_list:
            items = list(host.get(place.field, ()))
            host[place.field] = [*items[: len(taken)], {method.method_name: own}, *items[len(taken) + 1 :]]
        elif taken:
            raise ExclusiveError(self._why(place, method.axis, (*taken, asked)))
        else:
            host[place.field] = {method.method_name: own}
        taken.append(asked)

    def _why(self, place: Place, axis: str, methods: Sequence[type[Method]]) -> str:
        """Say why methods exclude each other, by their axes, so that equal reasons read alike."""
        inside = [method.axis for method in methods if method.axis != axis]
        only = [f"{name} only in {' or '.join(sorted(self._hosts(name)))}" for name in inside]
        return f"both stand at {place.host.method_name}.{place.field}: {' and '.join(only)}"

    def _hosts(self, axis: str) -> set[str]:
        return {place.host.method_name for place in self.places[axis]}


def _stages_read(method: type[Method]) -> set[str]:
    """Return the stages whose data a method reads by its example."""
    inside = methods_in(method.parse({method.method_name: dict(method.example)}))
    return {source.stage for source in inside if isinstance(source, StageData)}
