"""The machines that a run is meant for, as its file names them."""

from __future__ import annotations

from pydantic import Field

from cai_dist.config.base import Section


class HardwareConfig(Section):
    """The machines that a run is meant for: `cai-dist plan` judges by them, `check` and a run's start refuse what asks
    for more GPUs or CPUs. Where workers stand is asked of the cluster itself. What is not given is not judged."""

    nodes: int = Field(1, ge=1)
    """Machines, all alike."""
    gpus_per_node: int | None = Field(None, ge=0)
    """0: none; default: not known."""
    gpu_memory_gb: float | None = Field(None, gt=0)
    """Of one GPU, in 10^9 bytes: 80 for an 80 GB card."""
    cpus_per_node: int | None = Field(None, ge=1)
    """Logical CPUs; `cpus` of a placement count places on them."""
    cpu_memory_gb: float | None = Field(None, gt=0)
    """Of one node, in 10^9 bytes."""
