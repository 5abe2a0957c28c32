"""The environment of worker processes."""

from __future__ import annotations

import os

from cai_dist.cluster import network_interface


def worker_environment(threads: int, loopback: bool) -> dict[str, str]:
    """Variables of a worker process, set before Python starts in it: OpenMP reads its variables once.

    `threads`: CPU threads. `loopback`: all workers are on this machine.
    """
    env = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        # Threads of several workers on few cores: to spin without end costs a factor of ten, to sleep at once costs
        # a rollout worker of two threads a third of its speed. So they spin for some 50 microseconds, then sleep.
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "20000"),
        "TOKENIZERS_PARALLELISM": "false",
        # glibc would give every large tensor back to the system and fault its pages in again, thousands a step.
        "MALLOC_MMAP_THRESHOLD_": os.environ.get("MALLOC_MMAP_THRESHOLD_", str(2**32)),
        "MALLOC_TRIM_THRESHOLD_": os.environ.get("MALLOC_TRIM_THRESHOLD_", str(2**34)),
        # Copies of weights are of some MB: past the caches from 1 MiB on they take two thirds of the time.
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", f"glibc.cpu.x86_non_temporal_threshold={2**20}"),
    }
    if not loopback and os.environ.get("PYTHONPATH"):  # strategies of one's own; a local cluster inherits it
        folders = [os.path.abspath(folder) for folder in os.environ["PYTHONPATH"].split(os.pathsep) if folder]
        env["PYTHONPATH"] = os.pathsep.join([*folders, "${PYTHONPATH}"])
    if not loopback:
        env |= {name: os.environ[name] for name in network_interface.VARIABLES if name in os.environ}
    elif os.path.exists("/sys/class/net/lo"):
        env["GLOO_SOCKET_IFNAME"] = "lo"  # the machine's host name may not resolve
    return env
