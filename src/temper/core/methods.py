"""A method is a class whose fields are its settings; subclassing registers it.

Decisions:
- An *axis* is an abstract subclass of `Method` declared with `axis=` and the packages that hold its
  methods. A *method* is a concrete subclass declared with `name=`. Classes between the two (shared
  primitives) declare neither.
- A method is written in a recipe as its name (`lora`) or as one key over its settings
  (`{lora: {rank: 8}}`). A field annotated with the axis class accepts both, so recipe schemas
  are ordinary pydantic models.
- Files are discovered by folder, and third parties' by the entry-point group `temper.methods`.
  Nothing lists the methods by hand.
- Settings are frozen. What lives while training is a `Live` object that the method hands out.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from types import UnionType
from typing import Annotated, Any, ClassVar, Self, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from temper.core.code import code_version
from temper.core.errors import SettingError, nearest

ENTRY_POINT_GROUP = "temper.methods"


class Settings(BaseModel):
    """Frozen settings in which an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        allow_inf_nan=False,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, written: object, info: ValidationInfo) -> object:
        # Python counts True as 1; `lr: true` is a slip.
        if isinstance(written, bool) and info.field_name in cls.model_fields:
            accepted = _types_in(cls.model_fields[info.field_name].annotation)
            if bool not in accepted and accepted & {int, float}:
                raise PydanticCustomError("number_type", "Input should be a number, not true or false")
        return written

    @property
    def written_under(self) -> str:
        """What stands before its fields' names where an error tells where they are written."""
        return ""

    def idle(self) -> Mapping[str, str]:
        """Return the fields that change nothing beside the others, each with when it would (`only where ...`).

        To give one another value than its default is an error. A factor of 0 makes nothing idle: what it stands before
        is turned off in plain view.
        """
        return {}

    @model_validator(mode="after")
    def _refuse_what_is_idle(self) -> Self:
        for name, when in self.idle().items():
            field, value = type(self).model_fields[name], getattr(self, name)
            if value != field.get_default(call_default_factory=True, validated_data={}):
                written = field.alias or name
                raise SettingError(
                    f"{self.written_under}{written}", value, f"counts only {when}", f"leave {written} out"
                )
        return self


class Method(Settings):
    """One published method: its fields are its hyper-parameters, its docstring is its page."""

    axis: ClassVar[str] = ""
    method_name: ClassVar[str] = ""
    example: ClassVar[Mapping[str, Any]] = {}
    """settings with which it can be tried on the lab's data, where its defaults do not do"""
    beside: ClassVar[Mapping[str, Any]] = {}
    """settings that the stage around it then needs, where that stage's own example does not do"""
    formats: ClassVar[frozenset[str] | None] = None
    """the row formats that it works on; None where it looks at no rows"""
    extra: ClassVar[str] = ""
    """the extra of this package that brings what it cannot do without; none where empty"""
    _packages: ClassVar[tuple[str, ...]] = ()
    _registered: ClassVar[dict[str, type[Method]]] = {}
    _axis_class: ClassVar[type[Method]]

    def __init_subclass__(
        cls, *, axis: str = "", packages: tuple[str, ...] = (), name: str = "", **config: Any
    ) -> None:
        super().__init_subclass__(**config)
        if axis:
            cls.axis, cls._packages, cls._registered, cls._axis_class = axis, packages, {}, cls
            AXES[axis] = cls
        cls.method_name = name
        if name:
            other = cls._registered.get(name)
            if other is not None and other.__module__ != cls.__module__:
                raise TypeError(
                    f"{cls.__module__}.{cls.__qualname__}: the {cls.axis} method {name!r} is already "
                    f"{other.__module__}.{other.__qualname__}; choose another name"
                )
            cls._registered[name] = cls

    @classmethod
    def methods(cls) -> dict[str, type[Self]]:
        """Return every method of this axis by name, discovering the axis' folders first."""
        for package in cls._packages:
            _import_all(package)
        load_entry_points()
        return dict(sorted(cls._registered.items()))  # type: ignore[arg-type]

    @property
    def written_under(self) -> str:
        return f"{self.axis}.{self.method_name}."

    @classmethod
    def needs(cls) -> tuple[str, ...]:
        """Say what it needs of its surroundings, as its class declares it; axes add what is declared to them."""
        rows = () if cls.formats is None else (f"rows of format {', '.join(sorted(cls.formats))}",)
        extra = (f"the extra `{cls.extra}`: pip install 'temper-llm[{cls.extra}]'",) if cls.extra else ()
        return (*rows, *extra)

    @classmethod
    def declares(cls, hook: str) -> bool:
        """Tell whether it has a hook of its axis' base class of its own: what it needs, it declares there."""
        return getattr(cls, hook) is not getattr(cls._axis_class, hook)

    @classmethod
    def parse(cls, written: object) -> Self:
        """Turn `name` or `{name: settings}` into a method of this axis.

        Raises:
            PydanticCustomError: an unknown name, or settings that do not fit (`errors` in its context).
        """
        if isinstance(written, cls):
            return written
        if isinstance(written, str):
            name, settings = cls.from_text(written)
        elif isinstance(written, dict) and len(written) == 1:
            name, settings = next(iter(written.items()))
            settings = {} if settings is None else settings
        else:
            raise PydanticCustomError(
                "method_shape",
                "{shown} is not a {axis} method; write a name, or one name over its settings",
                {"shown": repr(written), "axis": cls.axis},
            )
        if isinstance(settings, cls):
            return settings
        known = cls.methods()
        if name not in known:
            raise PydanticCustomError(
                "unknown_method",
                "{shown} is not a {axis} method; {hint}",
                {"shown": repr(name), "axis": cls.axis, "hint": nearest(str(name), known)},
            )
        try:
            return known[name].model_validate(settings)
        except ValidationError as error:
            errors = error.errors()
            # In the message too, for who makes settings in Python and has no recipe whose lines could be named.
            said = "; ".join(f"{'.'.join(map(str, one['loc']))} {one['msg']}".strip() for one in errors)
            raise PydanticCustomError(
                "method_settings", "settings of {name}: {said}", {"name": name, "said": said, "errors": errors}
            ) from error

    @classmethod
    def from_text(cls, text: str) -> tuple[str, object]:
        """Split a method written as plain text into name and settings. Axes may add shorthands."""
        return text, {}

    def written(self) -> dict[str, Any]:
        """Return `{name: settings}` with every default filled in, as plain JSON values."""
        return {self.method_name: self.model_dump(mode="json", by_alias=True)}

    @classmethod
    def code_version(cls) -> str:
        """Name the method's code: its file, and what that imports from the axis' packages or its own.

        A changed method makes a new stage.
        """
        return code_version(cls.__module__, [*cls._packages, cls.__module__.rpartition(".")[0] or cls.__module__])

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if cls.method_name:
            return handler(source)
        return core_schema.no_info_plain_validator_function(
            cls.parse,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda method: method.written(), return_schema=core_schema.dict_schema()
            ),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: Any) -> dict[str, Any]:
        if cls.method_name:
            return dict(handler(schema))
        return {"description": f"a {cls.axis} method: its name, or its name over its settings"}


AXES: dict[str, type[Method]] = {}

CALIBRATION = "a calibration pass: some rows are looked at before training begins, where its settings ask for that"
OTHER_MODELS = "another model's outputs, besides the one that trains"


def on_many_processes(works_on_pieces: bool) -> str:
    """Say how a method stands to several processes."""
    if works_on_pieces:
        return "on several processes, nothing: tensors may be divided among them"
    return "on several processes, every tensor whole on each of them"


class Live:
    """What a method hands out for one training run: everything that changes while training.

    The engine calls the hooks at step boundaries and stores `state_dict` in each checkpoint, so that
    a resumed run equals an uninterrupted one bit for bit.
    """

    def before_step(self, moment: Any) -> None:
        """Called before the first forward pass of an optimizer step (`moment`: `core.schedule.Moment`)."""

    def before_update(self, moment: Any) -> None:
        """Called when the step's gradients are whole and clipped, before the optimizer takes them."""

    def after_step(self, moment: Any) -> None:
        """Called after the optimizer has stepped."""

    def after_training(self) -> None:
        """Called after the last step, with the numbers that are the result in place."""

    def remarks(self) -> Sequence[str]:
        """Return what the report should warn of, asked after the last step: say, that nothing came of a setting."""
        return ()

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values that a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""


def methods_in(settings: BaseModel) -> list[Method]:
    """Return every method inside a tree of settings, depth first."""
    found: list[Method] = [settings] if isinstance(settings, Method) and settings.method_name else []
    for name in type(settings).model_fields:
        found += _methods_in_value(getattr(settings, name))
    return found


def _methods_in_value(value: object) -> list[Method]:
    if isinstance(value, BaseModel):
        return methods_in(value)
    if isinstance(value, dict):
        return [method for item in value.values() for method in _methods_in_value(item)]
    if isinstance(value, list | tuple):
        return [method for item in value for method in _methods_in_value(item)]
    return []


def axes_in(annotation: Any, is_list: bool = False) -> Iterator[tuple[str, bool]]:
    """Yield the axes whose methods a field takes, by its annotation, and whether it takes a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, Method) and annotation.axis:
        if not annotation.method_name:
            yield annotation.axis, is_list
        return
    inside = is_list or get_origin(annotation) in (tuple, list)
    for argument in get_args(annotation):
        yield from axes_in(argument, inside)


def _types_in(annotation: object) -> set[type]:
    """Return the types that stand side by side in an annotation: those of unions, and what is `Annotated`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _types_in(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return {found for part in get_args(annotation) for found in _types_in(part)}
    return {annotation} if isinstance(annotation, type) else set()


_imported: set[str] = set()


def _import_all(package: str) -> None:
    if package in _imported:
        return
    _imported.add(package)
    module = importlib.import_module(package)
    for info in pkgutil.iter_modules(module.__path__, prefix=package + "."):
        importlib.import_module(info.name)


def load_entry_points() -> None:
    """Import every third-party method that an installed distribution offers."""
    if ENTRY_POINT_GROUP in _imported:
        return
    _imported.add(ENTRY_POINT_GROUP)
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        entry.load()
