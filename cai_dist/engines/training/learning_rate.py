"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from cai_dist.config.training import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Learning rate of optimiser step `step` (0-based, of those taken) of `total_steps`.

    The warm-up rises linearly from lr / warmup_steps to lr at step warmup_steps - 1. Cosine and linear then fall from
    lr towards lr * final_lr_fraction, which the step behind the last one (total_steps) would get, as in transformers:
    the last step learns, too. Steps beyond keep the final rate.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    span = max(1, total_steps - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)
    shape = 1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.lr * (config.final_lr_fraction + (1.0 - config.final_lr_fraction) * shape)
