from typing import Any

import pytest
from torch import nn

from temper.core.errors import ModelError
from temper.models.cache import cache_name


class Older(nn.Module):
    def forward(self, input_ids: Any, past_key_values: Any = None) -> None: ...


class Newer(nn.Module):
    def forward(self, input_ids: Any, cache: Any = None) -> None: ...


class Neither(nn.Module):
    def forward(self, input_ids: Any, **kwargs: Any) -> None: ...


def test_the_name_is_the_models_own() -> None:
    assert [cache_name(kind()) for kind in (Older, Newer)] == ["past_key_values", "cache"]
    with pytest.raises(ModelError, match=r"Neither\.forward takes neither of cache, past_key_values.*use a model"):
        cache_name(Neither())
