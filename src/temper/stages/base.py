"""What a stage does: the axis of stage kinds.

A stage is a pure function of its settings and inputs. It writes into the folder that it is given; the
pipeline names that folder by a hash, measures the model that comes out, and never runs the stage again.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from temper.core.errors import SettingError
from temper.core.methods import Method
from temper.data.rows import Rows
from temper.data.source import OnBadRows, Source, Split
from temper.engine.distributed import World
from temper.models.model import HEAD, Model


class Context(Protocol):
    """What the pipeline gives to a running stage."""

    name: str
    folder: Path
    """the stage's folder; it survives a kill, so that the stage can continue from what it left there"""
    cache: Path
    """shared by the recipe's stages: prepared data"""
    seed: int
    on_bad_rows: OnBadRows
    world: World
    """the processes of the run; one process, but for a stage that `runs_on` all of them"""

    def load(self, stage: str) -> Model:
        """Load the model that a stage made (`base` for the recipe's base), fresh and with nothing attached."""
        ...

    def artifact(self, stage: str) -> Path | None:
        """Return the folder of a stage (holding `delta/` or `model/`), None for the base."""
        ...

    def open(self, source: Source, split: Split = "train") -> Rows:
        """Open a source, made data and other stages' data included."""
        ...

    def say(self, text: str) -> None:
        """Tell the user something in a line."""
        ...


@dataclass
class Outcome:
    """What a stage reports, for `stage.json`."""

    cost: dict[str, float] = field(default_factory=dict)
    """`steps`, `tokens`, `supervised_tokens`, `flops`, `seconds` and `peak_memory_bytes`; of a training stage also
    `attach_seconds`, before the first step, and `start_memory_bytes`, with the model loaded"""
    details: dict[str, Any] = field(default_factory=dict)
    """anything else worth keeping: `trainable_parameters`, `parameters`, `rows`, `bad_rows`, `truncated`, ..."""
    warnings: list[str] = field(default_factory=list)


class Stage(Method, axis="stage", packages=("temper.stages",)):
    """What does a stage do?"""

    produces: ClassVar[Literal["model", "data", "files"]] = "model"
    """a model is measured after the stage; data can be named by later stages; files are only written"""

    runs_on: ClassVar[Literal["main", "all"]] = "main"
    """which processes of a run do the work; where it is all, the main one writes the result"""

    @classmethod
    def needs(cls) -> tuple[str, ...]:
        return (*super().needs(), f"on several processes, {'all of them' if cls.runs_on == 'all' else 'the main one'}")

    def models(self, previous: str) -> Sequence[str]:
        """Return the stages (or `base`) whose models this one reads.

        Args:
            previous: the nearest stage before this one that makes a model, or `base`: the default of `from`.
        """
        return (previous,)

    def starts_from(self, previous: str) -> str:
        """Return the stage (or `base`) that this one's model is compared with: the one it reads, where it reads one."""
        models = self.models(previous)
        return models[0] if len(models) == 1 else previous

    def prompt_length(self, lengths: Mapping[str, int], previous: str) -> int:
        """Return how many positions the soft prompts of the model that it makes take.

        Args:
            lengths: those of the models of the stages before it, and of `base`.
        """
        return lengths[self.starts_from(previous)]

    def sources(self) -> Sequence[Source]:
        """Return the data that this stage reads."""
        return ()

    def content(self) -> str:
        """Name by content what it reads besides stages and sources, such as a model's folder; part of its key."""
        return ""

    def stands(self, folder: Path, details: Mapping[str, Any]) -> bool:
        """Tell whether what the finished stage left is still there.

        Args:
            folder: the stage's own.
            details: what it reported.
        """
        return self.produces != "model" or (folder / "delta").is_dir() or (folder / "model").is_dir()

    @abstractmethod
    def run(self, context: Context, previous: str) -> Outcome:
        """Do the work; called again after a kill, with what the first call left in `context.folder`."""


def head_of(folder: Path | None) -> Path | None:
    """Return where the head lies that a stage's objective has learnt, None where it has learnt none."""
    return folder / HEAD if folder is not None and (folder / HEAD).is_dir() else None


def refuse_heads(context: Context, stages: Sequence[str], key: str, loss: str) -> None:
    """Raise SettingError where a stage has learnt a head, which the result could not keep.

    Args:
        key: the setting that names the stages.
        loss: what cannot be done with a head, as the rest of a sentence.
    """
    for stage in stages:
        if head_of(context.artifact(stage)) is not None:
            fix = "name the stage before it, and train a head on the result"
            raise SettingError(key, stage, f"has learnt a head for labels, which {loss}", fix)
