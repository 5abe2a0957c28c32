"""One local Ray cluster for all integration tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cai_dist.cluster.runtime import Cluster, GroupSpec
from cai_dist.config.run import ClusterConfig, TimeoutsConfig
from cai_dist.types import WorkerSpec
from tests.integration import pipeline
from tests.integration.train_bench import TrainBench
from tests.integration.warm import WarmCluster

TIMEOUTS = TimeoutsConfig(start=600.0, call=600.0, collective=300.0)
"""Seconds; what a test waits for in vain has deadlines of its own. A busy machine may be ten times as slow."""


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
def warm(cluster: Cluster) -> Iterator[WarmCluster]:
    """For tests to which it does not matter whether a process is new."""
    made = WarmCluster(cluster)
    yield made
    made.close()


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


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of tiny.yaml; for reading, and for copies."""
    runs = tmp_path_factory.mktemp("whole")
    done = pipeline.run(pipeline.TINY, runs)
    assert done.returncode == 0, done.stderr + done.stdout
    return runs / "tiny"
