"""Gradient checkpointing (arXiv 1604.06174): a layer keeps its input alone, and the backward pass computes it again.

Transformers' own switch acts in training mode only, in which dropout acts, too; here it acts wherever there are
gradients, so that a training pass goes on computing what a scoring pass does.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from cai_dist.config.training import ShardingConfig
from cai_dist.errors import ConfigError


def use_checkpointing(hf: Any, sharding: ShardingConfig, on_gpu: bool) -> bool:
    """Checkpoint the layers of a transformers model as `sharding.gradient_checkpointing` says; whether it was done.

    With `auto` that is on GPUs, for architectures whose layers can be. Raises ConfigError where it is asked for and
    they cannot.
    """
    if not sharding.checkpoints(on_gpu):
        return False
    layers = [module for module in hf.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers and sharding.gradient_checkpointing is True:
        raise ConfigError(
            f"gradient_checkpointing=true: the layers of {type(hf).__name__} cannot be computed a second time; "
            "set it to auto or false"
        )
    for layer in layers:
        kind: Any = type(layer)
        layer.__class__ = _checkpointed(kind)
    return bool(layers)


@cache
def _checkpointed(kind: Any) -> Any:
    """The kind of layer whose call keeps nothing but its input, under the same name.

    The whole call is repeated, with the hooks around it: under ZeRO-3 these gather the layer's weights again.
    """

    class Checkpointed(kind):  # type: ignore[misc]  # a class that is known at run time
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return super().__call__(*args, **kwargs)
            return checkpoint(partial(super().__call__, **kwargs), *args, use_reentrant=False)

    Checkpointed.__name__ = Checkpointed.__qualname__ = kind.__name__
    return Checkpointed
