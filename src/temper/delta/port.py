"""A change that one model went through, put onto another of the same architecture.

    theta_new' = theta_new + s * (theta_tuned - theta_old)

Papers: Efficient Model Development through Fine-tuning Transfer, arXiv:2503.20110 (whole differences); PortLLM:
Personalizing Evolving Large Language Models with Training-Free and Portable Model Patches, arXiv:2410.10870 (low-rank
patches). Both are this sum; a low-rank change stays low-rank. Works as far as the two bases are near each other.
"""

from __future__ import annotations

from dataclasses import replace

from temper.delta.base import Delta
from temper.models.model import Model


def port(delta: Delta, target: Model, scale: float = 1.0) -> Delta:
    """Return a change as one to another model; the model is left as it is.

    Args:
        delta: what was done to the old base.
        target: the new one.
        scale: factor of the change.

    Raises:
        ModelError: a parameter that the target lacks, has in another shape, or ties where the change does not.
    """
    fitted = delta.fit(target.module)
    moved = fitted if scale == 1 else fitted.scale(scale)
    old = delta.provenance
    note = {"change_to": old.base_fingerprint or old.base_name, "scale": scale, "method": old.method}
    moved.provenance = replace(old, base_fingerprint=target.fingerprint, method={"port": note})
    return moved
