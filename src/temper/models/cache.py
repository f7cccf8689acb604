"""The keys and values of the tokens before: under which name a model of transformers is given them."""

from __future__ import annotations

import inspect

from torch import nn

from temper.core.errors import ModelError

CACHE_NAMES = ("cache", "past_key_values")
"""since transformers 5.24, and until then"""


def cache_name(module: nn.Module) -> str:
    """Return the name of the argument that takes a `transformers.Cache`.

    Raises:
        ModelError: if no argument is called so.
    """
    named = inspect.signature(type(module).forward).parameters
    for name in CACHE_NAMES:
        if name in named:
            return name
    raise ModelError(
        f"{type(module).__name__}.forward takes neither of {', '.join(CACHE_NAMES)}, so it cannot generate: "
        "use a model whose forward keeps keys and values in a transformers Cache"
    )
