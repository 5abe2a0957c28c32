"""The rollout engine: what generates text and scores labels, in every stage."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from pydantic import Field

from cai_dist.config.base import Section, StrategyPath

Backend = Literal["hf", "vllm"]
VLLM_INSTALL = (
    "with a GPU `pip install -c constraints.txt -e '.[vllm]'` in the checkout, without one `make venv-vllm` and then "
    ".venv-vllm/bin/cai-dist"
)
"""How vLLM comes to be there; `make venv` leaves it out (docs/engines.md)."""


class VllmConfig(Section):
    """Settings of the vLLM engine (docs/engines.md); none is looked at with `engine.backend: hf`."""

    kv_cache_gb: float = Field(1.0, gt=0)
    """Room for keys and values of one engine on CPU, GiB."""
    gpu_memory_utilization: float = Field(0.5, gt=0, lt=1)
    """Share of a GPU's memory that one engine may take, weights and keys and values together."""
    enforce_eager: bool = True
    """No compiled graphs: an engine starts in seconds; False is faster on a GPU once it has started."""
    tensor_parallel: int = Field(1, ge=1)
    """Processes that hold one engine's model together, every matrix cut into so many parts. Each has the `gpus` and
    `cpus` that a worker of the role has, and all of them are on one host."""
    pipeline_parallel: int = Field(1, ge=1)
    """Groups of `tensor_parallel` processes that hold one engine's layers one after the other, on one host, too."""
    expert_parallel: bool = False
    """A mixture of experts: whole experts on each process, in place of a part of every expert."""

    @property
    def processes(self) -> int:
        """Processes of one engine."""
        return self.tensor_parallel * self.pipeline_parallel


class EngineConfig(Section):
    """One kind of engine for all stages that generate, PPO's rollouts included."""

    backend: Backend | StrategyPath = "hf"
    """`hf`: transformers with a loop of our own; `vllm`: vLLM (its own environment, docs/engines.md);
    `package.module:object`: a rollout engine of one's own (docs/extending.md)."""
    training: Literal["deepspeed"] | StrategyPath = "deepspeed"
    """What trains, in every stage: DeepSpeed, or a training engine of one's own."""
    max_rows: int = Field(128, ge=1)
    """Sequences that one engine decodes at a time."""
    max_tokens: int | None = Field(None, ge=1)
    """Bound on rows x columns of the keys and values of the `hf` engine; default: rows alone are bounded."""
    vllm: VllmConfig = VllmConfig()

    @property
    def processes(self) -> int:
        """Processes that one engine is made of."""
        return self.vllm.processes if self.backend == "vllm" else 1

    @property
    def leaves_nothing(self) -> bool:
        """Whether a process is as good as new when its worker is gone: of other engines nobody knows."""
        return self.backend == "hf" and self.training == "deepspeed"


def missing_backend(config: EngineConfig) -> str | None:
    """What to do where the package of `config.backend` is not installed, in a line. Imports nothing."""
    if config.backend != "vllm" or find_spec("vllm") is not None:
        return None
    return (
        f"engine.backend=vllm: the package vllm is not installed in this environment: {VLLM_INSTALL}; or set "
        "engine.backend=hf"
    )
