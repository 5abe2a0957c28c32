"""What the tests run on a Slurm job's Ray: print what is there, one JSON object, then end with a given code.

driver.py CODE [SECONDS]: at the first start of the job stay that long before. On TERM the code is 75.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import ray


def main() -> None:
    ray.init("auto", log_to_driver=False, logging_level="error")
    signal.signal(signal.SIGTERM, lambda *_: os._exit(75))

    @ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
    def where() -> tuple[str, str]:
        time.sleep(1)
        return os.environ["SLURMD_NODENAME"], os.environ.get("CUDA_VISIBLE_DEVICES", "")

    nodes = {node["NodeName"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    print(
        json.dumps(
            {
                "cpus": {name: resources.get("CPU", 0) for name, resources in nodes.items()},
                "gpus": {name: resources.get("GPU", 0) for name, resources in nodes.items()},
                "store_mb": {name: resources["object_store_memory"] / 2**20 for name, resources in nodes.items()},
                "tasks": dict(ray.get([where.remote() for _ in range(2 * len(nodes))], timeout=60)),
                "restarts": os.environ.get("SLURM_RESTART_COUNT", "0"),
                "arguments": sys.argv[2:],
            }
        ),
        flush=True,
    )
    if len(sys.argv) > 2 and os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        time.sleep(float(sys.argv[2]))
    sys.exit(int(sys.argv[1]))


if __name__ == "__main__":
    main()
