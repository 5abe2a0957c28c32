"""One local Ray cluster for all integration tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cai_dist.cluster.runtime import Cluster, GroupSpec
from cai_dist.config.run import ClusterConfig, TimeoutsConfig
from cai_dist.types import WorkerSpec
from tests.integration.train_bench import TrainBench

TIMEOUTS = TimeoutsConfig(start=150.0, call=90.0, collective=60.0)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    root = str(Path(__file__).resolve().parents[2])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, before]))  # workers import tests.integration.lab
    try:
        with Cluster(ClusterConfig(num_cpus=8, object_store_mb=200, timeouts=TIMEOUTS)) as running:
            yield running
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="session")
def bench(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainBench]:
    """A group of one and a group of two processes in which any worker can be built."""
    spec = WorkerSpec("tests.integration.lab:Bench", {})
    groups = cluster.launch(
        [
            GroupSpec("one", spec, workers=1, cpus=0.1, distributed=True),
            GroupSpec("two", spec, workers=2, cpus=0.1, distributed=True),
        ]
    )
    yield TrainBench({1: groups["one"], 2: groups["two"]}, tmp_path_factory.mktemp("bench"))
    for group in groups.values():
        group.close()
