"""How much memory this process takes, and took at most since it was last asked. Linux; elsewhere only the GPU's."""

from __future__ import annotations

from pathlib import Path

import torch

_PROC = Path("/proc/self")
_MIB = 2**20


def take_reading() -> dict[str, float]:
    """`rss_mb` now, `peak_mb` since the last reading, and on a GPU `gpu_mb` and `gpu_peak_mb` of what torch allocated
    there (MiB). Starts the next peak.

    Where the system does not let a process reset its peak, `peak_mb` is that of its whole life. What a child process
    takes (vLLM's engine may be one) is not counted.
    """
    reading = _resident()
    _reset_peak()
    if torch.cuda.is_initialized():
        reading["gpu_mb"] = torch.cuda.memory_allocated() / _MIB
        reading["gpu_peak_mb"] = torch.cuda.max_memory_allocated() / _MIB
        torch.cuda.reset_peak_memory_stats()
    return reading


def _resident() -> dict[str, float]:
    try:
        lines = (_PROC / "status").read_text("utf-8").splitlines()
    except OSError:
        return {}
    kib = {name: float(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if "kB" in rest}
    return {"rss_mb": kib.get("VmRSS", 0.0) / 1024, "peak_mb": kib.get("VmHWM", 0.0) / 1024}


def _reset_peak() -> None:
    try:
        (_PROC / "clear_refs").write_text("5", "utf-8")  # proc(5): the peak becomes what is resident now
    except OSError:
        return
