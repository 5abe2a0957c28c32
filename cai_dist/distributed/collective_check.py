"""A process that takes part in one all-reduce and says whether the sum is right: `cai-dist doctor` starts it, so that a
library that hangs or aborts ends this process and no other.

    python -m cai_dist.distributed.collective_check BACKEND RANK WORLD HOST PORT DEVICE SECONDS

Prints nothing and ends with 0, or prints one line and ends with 1.
"""

from __future__ import annotations

import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]


def all_reduce(backend: str, rank: int, world: int, host: str, port: int, device: int, seconds: float) -> str:
    """Join the store at host:port, sum 1 + rank over all ranks; "" or what was wrong. `device`: the GPU, for NCCL."""
    wait = timedelta(seconds=seconds)
    place = torch.device("cuda", device) if backend == "nccl" else torch.device("cpu")
    if place.type == "cuda":
        torch.cuda.set_device(place)
    store = TCPStore(host, port, None, is_master=False, timeout=wait)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=wait)
    try:
        summed = torch.full((1024,), float(1 + rank), device=place)
        dist.all_reduce(summed)
        expected = world * (world + 1) / 2
        return "" if bool((summed == expected).all()) else f"the sum is {float(summed[0])}, should be {expected}"
    finally:
        dist.destroy_process_group()


def main() -> int:
    """The command line above."""
    backend, rank, world, host, port, device, seconds = sys.argv[1:]
    try:
        problem = all_reduce(backend, int(rank), int(world), host, int(port), int(device), float(seconds))
    except (RuntimeError, ValueError, OSError) as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if problem:
        print(problem)
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
