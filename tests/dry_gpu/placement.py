"""The project's workers on the absent GPU: what must be exchanged in this process, and for how long."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cai_dist.distributed import process_group
from cai_dist.engines.training import deepspeed_engine
from tests.dry_gpu.absent_gpu import GPU, OnGpu, absent_gpu


class PlainDeepSpeed:
    """What `DeepSpeedEngine` asks of DeepSpeed's engine, on one rank: gradients of the model itself, and plain gradient
    descent."""

    def __init__(self, model: nn.Module) -> None:
        self.module = model
        self.optimizer = _Optimizer()
        self.norms: list[Tensor] = []
        """Of the gradient of each trained parameter, in the last step."""

    def __call__(self, *args: Any) -> Any:
        return self.module(*args)

    def train(self, mode: bool = True) -> None:
        self.module.train(mode)

    def eval(self) -> None:
        self.module.eval()

    def set_gradient_accumulation_boundary(self, last: bool) -> None:
        """Nothing: there is no other rank."""

    def backward(self, loss: Tensor, scale_wrt_gas: bool) -> None:
        loss.backward()

    @torch.no_grad()
    def step(self) -> None:
        self.norms = []
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, f"{name} has no gradient"
                self.norms.append(torch.linalg.vector_norm(parameter.grad, dtype=torch.float32))
                parameter.add_(parameter.grad, alpha=-self.optimizer.param_groups[0]["lr"])
                parameter.grad = None

    def get_global_grad_norm(self) -> Tensor:
        return torch.linalg.vector_norm(torch.stack(self.norms))

    def was_step_applied(self) -> bool:
        return True


class _Optimizer:
    def __init__(self) -> None:
        self.param_groups: list[dict[str, Any]] = [{"lr": 0.0}]


@contextmanager
def workers_on(device: torch.device) -> Iterator[None]:
    """A block in which this process's workers live on `device`, the CPU or the absent GPU, without DeepSpeed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deepspeed_engine, "import_deepspeed", lambda timeout: None)
        patch.setattr(deepspeed_engine, "initialize", lambda deepspeed, *, model, **_: PlainDeepSpeed(model))
        if device != GPU:
            yield
            return
        original = process_group.worker_device
        for name, module in list(sys.modules.items()):
            if name.startswith("cai_dist") and getattr(module, "worker_device", None) is original:
                patch.setattr(module, "worker_device", lambda: GPU)
        patch.setattr(nn.Module, "to", _moved)
        with absent_gpu():
            yield


_TO = nn.Module.to


def _moved(module: nn.Module, device: Any = None, *args: Any, **kwargs: Any) -> nn.Module:
    """`module.to(device)` for the absent GPU: tied parameters stay tied, as torch keeps them for its own devices."""
    if not isinstance(device, str | torch.device) or torch.device(device).type != "cuda":
        return _TO(module, device, *args, **kwargs)
    made: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and not isinstance(parameter, OnGpu):
                key = id(parameter)
                if key not in made:
                    made[key] = nn.Parameter(OnGpu(parameter.detach().clone()), parameter.requires_grad)
                part._parameters[name] = made[key]
        for name, buffer in part._buffers.items():
            if buffer is not None and not isinstance(buffer, OnGpu):
                part._buffers[name] = OnGpu(buffer.clone())
    return module


def one_rank() -> None:
    """This process is the one rank of a group over gloo, on whatever device its workers are."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
