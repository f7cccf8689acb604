"""Task arithmetic: changes are vectors, which are added, taken away and scaled."""

from __future__ import annotations

from temper.merge.sparse import MaskSignScale


class TaskArithmetic(MaskSignScale, name="task_arithmetic"):
    """Add the models' whole changes to the base.

        theta = theta_base + lambda * sum_i w_i tau_i,    tau_i = theta_i - theta_base

    A negative weight unlearns: w = -1 takes away what a model has learnt. With two models, one tuned on instructions
    and one pre-trained further, both from one base, it is the instruction residual (chat vector). The sum is the point
    of mask x sign x scale where nothing is masked. `scale` is lambda, `weights` are the w_i.

    Paper: Editing Models with Task Arithmetic, arXiv:2212.04089.
    """
