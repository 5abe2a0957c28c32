"""Tests on CUDA devices. Where there are none, each is skipped with one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cai_dist.cluster.runtime import Cluster
from cai_dist.config.run import ClusterConfig, TimeoutsConfig
from cai_dist.errors import CaiError

HERE = Path(__file__).parent
TIMEOUTS = TimeoutsConfig(start=240.0, call=120.0, collective=60.0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="needs a CUDA device (torch.cuda.is_available() is False)")
    for item in items:
        if HERE in Path(item.path).parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(skip)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A local Ray cluster that has all GPUs of this machine; workers import the tests, too."""
    patch = pytest.MonkeyPatch()
    root = str(HERE.parents[1])
    patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])))
    try:
        with Cluster(ClusterConfig(num_cpus=8, object_store_mb=400, timeouts=TIMEOUTS)) as running:
            yield running
    finally:
        patch.undo()


def skip_where_unshared(error: CaiError) -> None:
    """Some virtual machines and sandboxes do not let processes share GPU memory: nothing of ours."""
    if "processes cannot share GPU memory here" in str(error) or "the segment cannot be opened here" in str(error):
        pytest.skip(f"this machine has no CUDA IPC: {error}")
