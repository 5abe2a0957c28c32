"""Weight decay and the parameters that it acts on: the optimiser's parameter groups."""

from __future__ import annotations

from typing import Any

from torch import nn

from cai_dist.config.training import OptimizerConfig
from cai_dist.models.partition import full_shape


def parameter_groups(model: nn.Module, hf: Any, optimizer: OptimizerConfig) -> list[dict[str, Any]]:
    """The trained parameters of `model`, in its order: those that decay first. One group where none or all decay, so
    that nothing is cut in two for nothing. `hf` is the Hugging Face model in it, which knows its embeddings."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if not optimizer.weight_decay or optimizer.decay_on == "all":
        return [{"params": trained}]
    spared = _no_matrices(model)
    if optimizer.decay_on == "layers":
        ends = (hf.get_input_embeddings(), hf.get_output_embeddings())
        spared |= {id(p) for layer in ends if layer is not None for p in layer.parameters()}
    groups = [
        {"params": [p for p in trained if id(p) not in spared], "weight_decay": optimizer.weight_decay},
        {"params": [p for p in trained if id(p) in spared], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _no_matrices(model: nn.Module) -> set[int]:
    """Biases, norms (some have two dimensions: a row for each head) and what an architecture says must not decay."""
    return {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if len(full_shape(parameter)) < 2
        or name.endswith("bias")
        or "norm" in type(module).__name__.lower()
        or getattr(parameter, "_no_weight_decay", False)
    }
