"""Bringing DeepSpeed up in this process without a compiler and without its chatter."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from datetime import timedelta
from typing import Any

import torch


def import_deepspeed(timeout: float) -> Any:
    """The deepspeed module, attached to the process group that is already up; `timeout` in seconds as there."""
    os.environ["DS_ACCELERATOR"] = "cuda" if torch.cuda.is_available() else "cpu"
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # DeepSpeed calls collectives by names that newer torch deprecates: one warning a call would fill the logs.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    # On CPU DeepSpeed would compile a shared-memory all-reduce (a minute, a C++ compiler and ninja); gloo does it too.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(
        dist_backend=backend, auto_mpi_discovery=False, verbose=False, timeout=timedelta(seconds=timeout)
    )
    return deepspeed


def initialize(deepspeed: Any, **kwargs: Any) -> Any:
    """The engine of `deepspeed.initialize`, without what its optimisers print on the way."""
    with contextlib.redirect_stdout(io.StringIO()):
        return deepspeed.initialize(**kwargs)[0]


def undo_first_step(optimizer: Any) -> None:
    """Make a fresh `FP16_UnfusedOptimizer` (bf16 without ZeRO) one that has not stepped yet.

    It makes its moments by a step on gradients of 0: Adam then corrects every later step for one that was not there,
    and weight decay has already shrunk the masters.
    """
    with torch.no_grad():
        for masters, weights in zip(optimizer.fp32_groups, optimizer.fp16_groups, strict=True):
            for master, weight in zip(masters, weights, strict=True):
                master.copy_(weight)
                optimizer.state[master]["step"].zero_()
