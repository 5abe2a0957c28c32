"""Settings shared by everything that is trained: the optimiser, the batch and its sharding."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cai_dist.config.base import Section

Dtype = Literal["fp32", "bf16"]


class OptimizerConfig(Section):
    """AdamW and its learning-rate schedule."""

    lr: float = Field(1e-5, gt=0)
    """Peak learning rate."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Shape after the warm-up; cosine and linear end at `final_lr_fraction`."""
    warmup_steps: int = Field(0, ge=0)
    final_lr_fraction: float = Field(0.0, ge=0, le=1)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    grad_clip: float = Field(1.0, gt=0)
    """Global gradient norm is clipped to this."""


class ShardingConfig(Section):
    """How one trained role is spread over processes."""

    ranks: int = Field(2, ge=1)
    """Number of processes (one GPU each where there are GPUs)."""
    zero: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage."""
    ds_config: str | None = None
    """Path of a DeepSpeed JSON with "auto" values; default: the packaged `ds_configs/zeroN.json` of the stage."""
    micro_batch: int = Field(8, ge=1)
    """Sequences per forward pass and rank."""


class TrainConfig(Section):
    """One supervised training job."""

    optimizer: OptimizerConfig = OptimizerConfig()
    sharding: ShardingConfig = ShardingConfig()
    batch_size: int = Field(32, ge=1)
    """Sequences per optimiser step over all ranks; a multiple of ranks x micro_batch."""
    epochs: int = Field(1, ge=1)
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimiser steps; default: all of the epochs."""
    checkpoint_every: int = Field(50, ge=1)
    """Optimiser steps between checkpoints."""

    @model_validator(mode="after")
    def _divisible(self) -> TrainConfig:
        unit = self.sharding.ranks * self.sharding.micro_batch
        if self.batch_size % unit:
            raise ValueError(
                f"batch_size={self.batch_size}: must be a multiple of sharding.ranks x sharding.micro_batch = "
                f"{self.sharding.ranks} x {self.sharding.micro_batch} = {unit}"
            )
        return self


class SamplingConfig(Section):
    """How answers are drawn. The paper samples at temperature 1 throughout."""

    temperature: float = Field(1.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: int = Field(128, ge=1)
