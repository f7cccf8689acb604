"""What `temper compare` varies and how it measures it: the key `compare` of a recipe."""

from __future__ import annotations

import re
from typing import Any, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from temper.core.errors import SettingError
from temper.core.methods import Settings

_FACTORS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


class Length(Settings):
    """How long each training stage of every setting trains: one of the three."""

    tokens: PositiveInt | None = Field(None, description="tokens, replayed ones included; as text also 2M or 500k")
    steps: PositiveInt | None = Field(None, description="optimizer steps")
    epochs: PositiveFloat | None = Field(None, description="passes over the data")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, written: object) -> object:
        if not isinstance(written, str):
            return written
        name, equals, count = written.partition("=")
        if not equals:
            raise SettingError("budget", written, "is no budget", "write tokens=2M, steps=500 or epochs=1")
        return {name.strip(): count.strip()}

    @field_validator("*", mode="before")
    @classmethod
    def _read_count(cls, written: object) -> object:
        if not isinstance(written, str):
            return written
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMG]?)", written.strip())
        if found is None:
            raise SettingError("budget", written, "is no count", "write it as 2000000, 500k or 2M")
        count = float(found[1]) * _FACTORS[found[2]]
        return int(count) if count == int(count) else count

    @model_validator(mode="after")
    def _just_one(self) -> Self:
        if len(self.given) != 1:
            reason = "is no budget" if not self.given else "is more than one budget"
            raise SettingError("budget", self.given, reason, "give one of tokens, steps and epochs")
        return self

    @property
    def given(self) -> dict[str, float]:
        """What was written, by name."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}


class RateSearch(Settings):
    """The learning rates that are tried for each setting, evenly spaced by their logarithms around a middle.

    The middle is `times` the setting's own rate: the recipe's `lr`, or the tuner's default where there is none.
    """

    num: int = Field(3, ge=1, le=31, description="learning rates that are tried; 1: no search")
    ratio: float = Field(3.0, gt=1, description="each rate as a multiple of the one below")
    times: float = Field(1.0, gt=0, description="the middle as a multiple of the setting's own rate")

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, written: object) -> object:
        return {"num": written} if isinstance(written, int) and not isinstance(written, bool) else written

    def factors(self) -> list[float]:
        """Return what a setting's own rate is multiplied with, the least first."""
        return [self.times * self.ratio ** (place - (self.num - 1) / 2) for place in range(self.num)]


class Compare(Settings):
    """Settings that are compared under one budget, each with the same small search of learning rates."""

    vary: dict[str, tuple[Any, ...]] = Field(
        {},
        description="values by key; all combinations are compared. A key is written as on the command line "
        "(stages.adapt.train.tune), or from the kind of stage on (train.tune): then it holds for every stage of that "
        "kind. `all` among the values, or inside one ({lora: {init: all}}), stands for every method that fits there",
    )
    seeds: PositiveInt = Field(3, description="runs of each setting, with the recipe's seed + 1, + 2, ...")
    budget: Length | None = Field(None, description="how long each trains; the recipe's own length where not given")
    lr_search: RateSearch = Field(
        default_factory=RateSearch, description="the learning rates that are tried before, with the recipe's own seed"
    )
    jobs: PositiveInt = Field(1, description="runs at the same time, each in a process of its own")

    @field_validator("vary", mode="before")
    @classmethod
    def _one_value_is_a_list(cls, written: object) -> object:
        if not isinstance(written, dict):
            return written
        return {key: value if isinstance(value, list | tuple) else (value,) for key, value in written.items()}

    @field_validator("vary", mode="after")
    @classmethod
    def _some_values(cls, vary: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        for key, values in vary.items():
            if not values:
                raise SettingError("vary", key, "has no value", "list its values, as in train.tune: [lora, full]")
        return vary
