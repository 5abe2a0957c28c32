"""A node of a joined cluster goes: ranks that need it are named and end the run resumably, a queue goes on elsewhere.

In a process of its own, because it joins another cluster than the tests around it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cai_dist.cluster.runtime import Cluster, GroupSpec
from cai_dist.cluster.work_queue import Loss, WorkQueue
from cai_dist.config.run import ClusterConfig, TimeoutsConfig
from cai_dist.errors import NodeLost
from cai_dist.types import WorkerSpec
from tests.multihost.hosts import HEALTH, wait_for

ROOT = Path(__file__).parents[2]
SECONDS = 600.0


def lose_a_node(folder: Path) -> dict[str, object]:
    """A head and one more node, on each a worker of two groups. The second node's raylet is killed while one group is
    in a call and the other has a shard in hand there."""
    from ray.cluster_utils import Cluster as Nodes

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 80 * 2**20})
    second = nodes.add_node(num_cpus=2, object_store_memory=80 * 2**20)
    timeouts = TimeoutsConfig(start=300, call=300, collective=30)
    config = ClusterConfig(address=nodes.address, strategy="spread", timeouts=timeouts)
    spec = WorkerSpec("tests.integration.lab:Trouble", {})
    with Cluster(config) as cluster:
        ranks = cluster.launch([GroupSpec("ranks", spec, workers=2, cpus=0.5, distributed=True)])["ranks"]
        pair = cluster.launch([GroupSpec("pair", spec, workers=2, cpus=0.5)])["pair"]
        ranks.holds(4)
        there = [{rank for rank, member in group._members.items() if member.node_id == second.node_id}
                 for group in (ranks, pair)]  # fmt: skip
        waiting = ranks.start("update", "act", ["sleep", "sleep"])
        losses: list[str] = []

        def lost(loss: Loss) -> None:
            losses.append(f"{loss.rank} {loss.cause}")
            (folder / "go").touch()

        queue = WorkQueue(pair, 1, lost=lost)
        # Both workers are in a call that ends once there is a file that nobody makes before the loss is known.
        started = [str(folder / "0"), str(folder / "1")]
        results = queue.map("revise", "meet", {name: (name, str(folder / "go")) for name in started})
        ended: list[str] = []

        def cut() -> None:
            wait_for(lambda: all(map(os.path.exists, started)), 60, "both workers")
            nodes.remove_node(second, allow_graceful=False)

        cutting = threading.Thread(target=cut)
        cutting.start()
        ended += [key for key, _ in results]
        cutting.join()
        x, y = str(folder / "x"), str(folder / "y")
        ended += [key for key, _ in queue.map("revise", "meet", {"x": (x, y), "y": (y, x)})]  # it takes two
        try:
            waiting.result()
            line, code = "", 0
        except NodeLost as lost:
            line, code = str(lost), lost.exit_code
        on = [member.node_id == second.node_id for member in pair._members.values()]
    nodes.shutdown()
    return {
        "there": [sorted(ranks) for ranks in there], "ended": sorted(ended) == [*started, "x", "y"], "losses": losses,
        "line": line, "code": code, "still_there": any(on),
    }  # fmt: skip


@pytest.mark.timeout(1200)
def test_a_node_that_goes_is_named_and_a_queue_goes_on_without_it(tmp_path: Path) -> None:
    env = {**os.environ, **HEALTH, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    env.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.test_nodes", str(tmp_path)],
        capture_output=True, text=True, timeout=SECONDS, env=env, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    [rank], [pair] = found["there"]
    assert found["line"].startswith(f"phase update: ranks[{rank}] on ") and "weight version 4" in found["line"]
    assert "go on with the same command" in found["line"] and found["code"] == 75
    assert found["ended"] and not found["still_there"]
    # Once with its shard; and again where the new worker was placed there before Ray knew that the node is gone.
    assert 1 <= len(found["losses"]) <= 2
    assert all(loss.startswith(f"{pair} the node ") for loss in found["losses"])


if __name__ == "__main__":
    print(json.dumps(lose_a_node(Path(sys.argv[1]))))
