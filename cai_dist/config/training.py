"""Settings shared by everything that is trained: the optimiser, the batch and its sharding."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cai_dist.config.base import Section

Dtype = Literal["fp32", "bf16"]
Layout = Literal["packed", "padded"]
HeadDtype = Literal["model", "fp32"]
Quantization = Literal["none", "int8", "nf4"]


class OptimizerConfig(Section):
    """AdamW and its learning-rate schedule."""

    lr: float = Field(1e-5, gt=0)
    """Peak learning rate."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Shape after the warm-up; cosine and linear fall towards `final_lr_fraction`, which the step after the last one
    would have. Counted are the steps that are taken."""
    warmup_steps: int = Field(0, ge=0)
    final_lr_fraction: float = Field(0.0, ge=0, le=1)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    decay_on: Literal["matrices", "layers", "all"] = "matrices"
    """What `weight_decay` acts on. `matrices`: no biases and no norms, as in Hugging Face's Trainer and TRL; `layers`:
    no embeddings and no output layer either; `all`: every parameter."""
    grad_clip: float = Field(1.0, gt=0)
    """Global gradient norm is clipped to this."""
    skipped_steps: int = Field(0, ge=0)
    """A step whose loss or gradient norm is not finite is not taken. As many of them the job leaves out, and says so;
    one more ends the run. Default: the first one does."""


class ShardingConfig(Section):
    """How one trained role is spread over processes."""

    ranks: int = Field(2, ge=1)
    """Number of processes (one GPU each where there are GPUs)."""
    zero: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage."""
    ds_config: str | None = None
    """Path of a DeepSpeed JSON with "auto" values; default: the packaged `ds_configs/zeroN.json` of the stage."""
    micro_batch: int = Field(8, ge=1)
    """Sequences per forward pass and rank, where `max_tokens_per_micro_batch` is not set."""
    max_tokens_per_micro_batch: int | None = Field(None, ge=1)
    """Hard cap on the tokens of one forward pass of a rank (rows x longest with `models.layout: padded`); up to it
    micro-batches are filled. Default: `micro_batch` sequences each."""
    gradient_checkpointing: Literal["auto"] | bool = "auto"
    """Whether a layer keeps its input alone for the backward pass and runs once more there (arXiv 1604.06174): a third
    more computation, a fraction of the memory, the same numbers. `auto`: on GPUs."""

    sequence_parallel: int = Field(1, ge=1)
    """So many ranks compute each micro-batch together, every one a stretch of its tokens (Ulysses, arXiv 2309.14509):
    for sequences whose activations one GPU does not hold. It must divide `ranks` and the model's attention heads, and
    needs `models.layout: packed`. A limit on micro-batches is that of the ranks together."""

    @model_validator(mode="after")
    def _groups(self) -> ShardingConfig:
        if self.ranks % self.sequence_parallel:
            raise ValueError(f"sequence_parallel={self.sequence_parallel}: must divide ranks={self.ranks}")
        return self

    @property
    def data_ranks(self) -> int:
        """How many micro-batches are computed at the same time."""
        return self.ranks // self.sequence_parallel

    def checkpoints(self, on_gpu: bool) -> bool:
        """`gradient_checkpointing` without `auto`."""
        return on_gpu if self.gradient_checkpointing == "auto" else self.gradient_checkpointing


class ScoringConfig(Section):
    """How one model that only scores is spread over processes: with ZeRO-3 each holds a part of every tensor."""

    ranks: int = Field(2, ge=1)
    """Number of processes (one GPU each where there are GPUs)."""
    zero: Literal[3] = 3
    """DeepSpeed ZeRO stage: only 3 cuts weights."""
    ds_config: str | None = None
    """Path of a DeepSpeed JSON with "auto" values; default: the packaged `ds_configs/zero3_score.json`."""

    def sharding(self, micro_batch: int) -> ShardingConfig:
        """The settings of a sharded model in the form that trained roles have, in passes of `micro_batch` sequences."""
        return ShardingConfig(ranks=self.ranks, zero=self.zero, ds_config=self.ds_config, micro_batch=micro_batch)


class ExportConfig(Section):
    """The files of a trained model in the Hugging Face layout."""

    dtype: Literal["model"] | Dtype = "model"
    """Precision of the weights in the files; `model`: that of the training's weights, `models.dtype`."""
    max_shard_gb: float = Field(5.0, gt=0)
    """Largest file, in GB (1e9 bytes); one tensor that is larger gets a file of its own. As much host memory is taken
    while a model is written."""


class LoraConfig(Section):
    """Low-rank adapters (LoRA, 2106.09685): a layer's weight W becomes W + alpha / rank * B A with W frozen."""

    rank: int = Field(16, ge=1)
    """Rows of A and columns of B."""
    alpha: float = Field(32.0, gt=0)
    """Scale of what the adapters add, times `rank`."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before A in training passes; above 0 the ratio of PPO is noisy."""
    target_modules: Literal["auto"] | tuple[str, ...] = "auto"
    """`auto`: all linear layers of the blocks; or names such as [q_proj, v_proj]."""
    save: Literal["merged", "adapter"] = "merged"
    """`merged`: a whole model; `adapter`: a PEFT folder with A, B and the scalar head, where there is one, beside the
    model that it belongs to."""
    quantization: Quantization = "none"
    """How the frozen linear layers under the adapters are kept: `none`, in `models.dtype`; `int8`: a byte an element, a
    scale a row (2208.07339); `nf4`: half a byte, a scale for each 64 elements (QLoRA, 2305.14314). By bitsandbytes,
    with ZeRO 0 to 2 and `save: merged`."""

    @model_validator(mode="after")
    def _names(self) -> LoraConfig:
        if self.target_modules != "auto" and not all(self.target_modules):
            raise ValueError(f"target_modules={list(self.target_modules)}: must be auto or names of linear layers")
        if not self.target_modules:
            raise ValueError("target_modules=[]: must be auto or at least one name; lora: null trains all weights")
        if self.quantization != "none" and self.save == "adapter":
            raise ValueError(
                f"save=adapter: must be merged with quantization={self.quantization}; on a base in full precision the "
                "adapter is another model than the one that was trained"
            )
        return self


class TrainConfig(Section):
    """One supervised training job."""

    optimizer: OptimizerConfig = OptimizerConfig()
    sharding: ShardingConfig = ShardingConfig()
    batch_size: int = Field(32, ge=1)
    """Sequences per optimiser step over all ranks."""
    epochs: int = Field(1, ge=1)
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimiser steps; default: all of the epochs."""
    checkpoint_every: int = Field(50, ge=1)
    """Optimiser steps between checkpoints."""


class SamplingConfig(Section):
    """How answers are drawn. The paper samples at temperature 1 throughout."""

    temperature: float = Field(1.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: int = Field(128, ge=1)
