"""The process group of one worker group: torch.distributed over a store that rank 0 opens and keeps.

The store lives from the moment that its port is known, so no other process can take the port in between.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import HashStore, Store, TCPStore  # type: ignore[attr-defined]

from cai_dist.errors import ConfigError
from cai_dist.types import RankInfo

_stores: list[TCPStore] = []


def open_store(host: str, timeout: float) -> int:
    """Open, on rank 0, the rendezvous store of the group, as `listening_store` does, and return its port."""
    store, port = listening_store(host, timeout)
    _stores[:] = [store]
    return port


def listening_store(host: str, timeout: float) -> tuple[TCPStore, int]:
    """A store at the address `host` alone, and its port.

    The store asks nobody who they are, so it does not listen on other interfaces. Raises OSError.
    """
    with socket.socket() as server:
        server.bind((host, 0))
        server.listen()
        port = int(server.getsockname()[1])
        store = TCPStore(
            host, port, None, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout),
            master_listen_fd=server.detach(),
        )  # fmt: skip
    return store, port


def worker_device() -> torch.device:
    """The GPU of this process where it was given one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def prepare_device() -> None:
    """Make the GPU of this process, where it was given one, the current one."""
    device = worker_device()
    if device.type != "cuda":
        return
    torch.cuda.set_device(device)
    # cuDNN's attention, which torch prefers on some GPUs, makes a plan for every new shape. Here they all are new: a
    # token more in the cache at every step, batches of other lengths.
    torch.backends.cuda.enable_cudnn_sdp(False)


def init_process_group(info: RankInfo, timeout: float) -> None:
    """Join the group of `info` once per process: NCCL with a GPU, gloo without. `timeout` in seconds bounds every
    collective. Raises ConfigError if the process already belongs to a group of another shape."""
    if dist.is_initialized():
        if (dist.get_rank(), dist.get_world_size()) != (info.rank, info.world_size):
            raise ConfigError(f"{info.role}: this process already is rank {dist.get_rank()} of {dist.get_world_size()}")
        return
    wait = timedelta(seconds=timeout)
    store: Store
    if info.rank == 0 and _stores:
        store = _stores[0]
    elif info.world_size == 1:
        store = HashStore()
    else:
        store = TCPStore(info.master_addr, info.master_port, None, is_master=False, timeout=wait)
    os.environ.update(
        RANK=str(info.rank),
        WORLD_SIZE=str(info.world_size),
        LOCAL_RANK=str(info.local_rank),
        MASTER_ADDR=info.master_addr,
        MASTER_PORT=str(info.master_port),
    )
    backend = "nccl" if worker_device().type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=info.rank, world_size=info.world_size, timeout=wait)
