"""Functions of a test on two ranks or more: a process each, with a process group over gloo, without Ray.

The processes are started by `python -m tests.two_ranks` and import torch themselves: a fork of a process that has used
its threads may hang.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cai_dist.registry import find_object
from cai_dist.types import RankInfo

ROOT = Path(__file__).parents[1]
SECONDS = 600


def on_two_ranks(function: Callable[..., Any], **arguments: Any) -> list[Any]:
    """`on_ranks` for two of them."""
    return on_ranks(2, function, **arguments)


def on_ranks(world: int, function: Callable[..., Any], **arguments: Any) -> list[Any]:
    """What `function(rank_info, **arguments)` returns on each of `world` ranks; arguments and results as JSON has them.

    Raises: AssertionError with what was printed where a rank has failed.
    """
    path = f"{function.__module__}:{function.__name__}"
    ends = [os.pipe() for _ in range(world)]
    running: list[subprocess.Popen[str]] = []
    port = 0
    for rank in range(world):
        command = [sys.executable, "-m", "tests.two_ranks", path, str(rank), str(world), str(port), str(ends[rank][1])]
        running.append(
            subprocess.Popen(
                [*command, json.dumps(arguments)],
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
                pass_fds=(ends[rank][1],),
                stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        os.close(ends[rank][1])
        if rank == 0:
            assert (out := running[0].stdout) is not None
            port = int(out.readline() or 0)
    with ThreadPoolExecutor(world) as readers:  # together: a rank whose pipe is full waits, and the others for it
        failures = list(readers.map(lambda process: process.communicate(timeout=SECONDS)[1], running))
    said = "\n".join(f"rank {rank}: {text}" for rank, text in enumerate(failures))
    assert all(process.returncode == 0 for process in running), said
    found = []
    for end, _ in ends:
        with os.fdopen(end) as result:
            found.append(json.loads(result.read()))
    return found


def main() -> None:
    """One rank; rank 0 prints the port of its store first."""
    import torch
    import torch.distributed as dist

    from cai_dist.distributed.process_group import init_process_group, open_store

    path, rank, world, port, end, arguments = sys.argv[1:]
    torch.set_num_threads(1)
    where = int(port)
    if rank == "0":
        where = open_store("127.0.0.1", SECONDS)
        print(where, flush=True)
    info = RankInfo("test", int(rank), int(world), master_addr="127.0.0.1", master_port=where)
    init_process_group(info, SECONDS)
    found = find_object(path, "test", None)(info, **json.loads(arguments))
    dist.barrier()
    with os.fdopen(int(end), "w") as result:
        json.dump(found, result)
    sys.stdout.flush()
    os._exit(0)  # the group's threads would wait for each other


if __name__ == "__main__":
    main()
