"""A GPU that is not there: tensors that say they are on `cuda:0`, computed on the CPU.

Every operation that mixes such a tensor with one of the CPU raises, as CUDA would; every wait of the host is counted
(`waits.py`). The numbers are real, so that code which depends on them runs and results can be compared with a CPU run.
To C++ the device is torch's python backend (`privateuseone`), which brings the device guard that autograd wants and a
build without CUDA lacks; to Python `.device` and `.is_cuda` say CUDA.

It changes torch for the whole process, and before the project is imported, which decorates with what is exchanged:
only `python -m tests.dry_gpu` imports it. What it cannot show: kernels,
memory, streams, NCCL, anything that asks `torch.cuda` itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

from tests.dry_gpu import pinned
from tests.dry_gpu.ragged_kernel import PREFIX, ragged_kernel
from tests.dry_gpu.waits import WAITS, here

GPU = torch.device("cuda", 0)
_BACKEND = "absentgpu"
_READS = frozenset(
    {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_consecutive"}
    | {"unique_dim", "repeat_interleave"}
)
"""Operators whose answer, or the shape of it, the host must know."""
_INDEXING = frozenset({"index", "index_put", "index_put_", "_index_put_impl_"})
"""Operators that take indices from the CPU (CUDA copies them over) and whose mask of bools is a `nonzero`."""
_NO_SCALARS = frozenset({"cat", "stack", "index_select", "gather", "scatter", "index_copy", "index_add"})
"""Operators that refuse even a single number of the CPU beside tensors of the GPU."""


class DeviceMix(RuntimeError):
    """Tensors of two devices in one operation."""


class OnGpu(torch.Tensor):
    """A tensor of the absent GPU. `real`: the CPU tensor with its numbers."""

    real: Tensor
    __slots__ = ["real"]
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, real: Tensor) -> OnGpu:
        return torch.Tensor._make_wrapper_subclass(
            cls, real.size(), strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype,
            device=torch.device(_BACKEND, 0), requires_grad=False,
        )  # type: ignore[attr-defined,no-any-return]  # fmt: skip

    def __init__(self, real: Tensor) -> None:
        assert not isinstance(real, OnGpu)
        self.real = real

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["real"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], meta: Any, size: Any, stride: Any) -> OnGpu:
        return OnGpu(inner["real"])

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return torch.Tensor.data.__get__(self)  # type: ignore[attr-defined,no-any-return]

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, OnGpu):
            raise DeviceMix(f"the data of a cuda parameter replaced by a cpu tensor at {here()}")
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.real = value.real

    def cpu(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.to("cpu")

    def tolist(self) -> Any:
        WAITS.note("tolist")
        return self.real.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnGpu({self.real!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class AbsentGpu(TorchDispatchMode):
    """While it is on, `device="cuda"` makes tensors of the absent GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def absent_gpu() -> Iterator[None]:
    """A block in which the absent GPU is there."""
    lifted = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") is then a copy that is seen
    try:
        with AbsentGpu():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(lifted)
        pinned.forget()


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operator: refused, counted, computed on the CPU."""
    name = func._schema.name
    short = name.removeprefix("aten::")
    gpu: list[OnGpu] = []
    cpu: list[Tensor] = []
    for one in _tensors((args, kwargs)):
        gpu.append(one) if isinstance(one, OnGpu) else cpu.append(one)
    to_gpu = _says_gpu(kwargs.get("device"), bool(gpu))
    if short == "_to_copy" and gpu and not to_gpu:
        return _to_host(func, args, kwargs)
    if short == "copy_" and gpu and cpu:
        return _copied_across(*args, **kwargs)
    if gpu and cpu:
        _refuse_mix(short, args, cpu)
    _note_waits(short, args, kwargs, gpu, cpu, to_gpu)
    real = {key: _each(value, _real) for key, value in kwargs.items()}
    pin = bool(real.pop("pin_memory", False))
    if real.get("device") is not None:
        real["device"] = torch.device("cpu")
    generator = real.get("generator")
    if to_gpu and generator is not None and generator.device.type == "cpu":
        raise DeviceMix(f"{name}: a cuda tensor drawn with a generator of the cpu at {here()}")
    compute = ragged_kernel(func) if name.startswith(PREFIX) else func
    out = compute(*_each(args, _real), **real)
    if short == "_local_scalar_dense":
        return out
    if not to_gpu:
        return pinned.mark(out) if pin else out
    if short == "_to_copy" and any(out is one for one in (*cpu, *(one.real for one in gpu))):
        out = out.clone()  # a "copy" to the same dtype
    wrapped = _each(out, OnGpu)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if gpu and _aliases(func) else wrapped


def _tensors(thing: Any) -> Iterator[Tensor]:
    """Every tensor in nested lists, tuples and dicts."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, list | tuple):
        for one in thing:
            yield from _tensors(one)
    elif isinstance(thing, dict):
        yield from _tensors(list(thing.values()))


def _each(thing: Any, of: Callable[[Tensor], Tensor]) -> Any:
    """`thing` with `of` of every tensor in it."""
    if isinstance(thing, Tensor):
        return of(thing)
    return type(thing)(_each(one, of) for one in thing) if type(thing) in (list, tuple) else thing


def _real(tensor: Tensor) -> Tensor:
    return tensor.real if isinstance(tensor, OnGpu) else tensor


@cache
def _aliases(func: Any) -> bool:
    """Whether an operator returns, or looks into, what it was given."""
    return any(one.alias_info is not None for one in (*func._schema.arguments, *func._schema.returns))


def _says_gpu(device: Any, otherwise: bool) -> bool:
    return otherwise if device is None else torch.device(device).type in ("cuda", _BACKEND)


def _to_host(func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """A new CPU tensor."""
    if not kwargs.get("non_blocking"):
        WAITS.note("copy to the host")
    rest = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory")}
    real: Tensor = args[0].real
    found: Tensor = func(real, **rest)
    return real.clone() if found is real else found


def _copied_across(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """`copy_` between host and device; free where the host's side is pinned and nobody waits."""
    host = source if isinstance(target, OnGpu) else target
    if not (non_blocking and pinned.is_pinned(host)):
        WAITS.note("copy to the device" if isinstance(target, OnGpu) else "copy to the host")
    to, from_ = (x.real if isinstance(x, OnGpu) else x for x in (target, source))
    to.copy_(from_)
    return target


def _refuse_mix(short: str, args: Any, cpu: list[Tensor]) -> None:
    """Raises DeviceMix for what CUDA refuses: CPU tensors beside its own, but for single numbers and for indices."""
    if short == "_to_copy":
        return
    if short in _INDEXING:
        if not isinstance(args[0], OnGpu):
            raise DeviceMix(f"{short}: a cpu tensor with indices of cuda:0 at {here()}")
        if len(args) > 2 and isinstance(args[2], Tensor) and not isinstance(args[2], OnGpu) and args[2].dim():
            raise DeviceMix(f"{short}: numbers of the cpu into a tensor of cuda:0 at {here()}")
        return
    if any(x.dim() for x in cpu) or short.partition(".")[0] in _NO_SCALARS:
        raise DeviceMix(f"{short}: tensors of cuda:0 and of the cpu at {here()}")


def _note_waits(
    short: str, args: Any, kwargs: dict[str, Any], gpu: list[OnGpu], cpu: list[Tensor], to_gpu: bool
) -> None:
    """Count what the host waits for in this operator."""
    if short == "_to_copy" and cpu and to_gpu:
        if not (kwargs.get("non_blocking") and pinned.is_pinned(cpu[0])):
            WAITS.note("copy to the device")
    elif gpu and short in _INDEXING:
        if cpu and any(x.dim() for x in cpu):
            WAITS.note("indices copied to the device")
        if any(x.dtype in (torch.bool, torch.uint8) for x in _tensors(args[1])):
            WAITS.note("a mask as index")
    elif gpu and short in _READS and (short != "repeat_interleave" or kwargs.get("output_size") is None):
        WAITS.note(short)


class _Stream:
    """What runs on it has always run."""

    def synchronize(self) -> None:
        WAITS.note("synchronize")


def _setup() -> None:
    """Once, before the first backward pass: autograd counts its devices then."""
    backend_registration._setup_privateuseone_for_python_backend(_BACKEND)
    torch.cuda._lazy_init = lambda: None  # what a factory with device="cuda" calls before it is dispatched
    torch.cuda.set_device = lambda device: None
    torch.cuda.synchronize = lambda *_: WAITS.note("synchronize")
    torch.cuda.current_stream = lambda *_: _Stream()  # type: ignore[assignment,return-value]
    # Inference mode forbids the version counters that the wrapper needs; the numbers are the same.
    torch.inference_mode = torch.no_grad  # type: ignore[misc,assignment]
    pinned.install()


_setup()
