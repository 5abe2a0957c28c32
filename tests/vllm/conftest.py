"""Tests on a real vLLM, CPU build. `make test-vllm` builds the environment that they run in."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

if importlib.util.find_spec("vllm") is None:

    def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
        for item in items:
            if item.nodeid.startswith("tests/vllm/"):
                item.add_marker(pytest.mark.skip(reason="vllm is not installed; run make test-vllm"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[object]:
    """A local Ray cluster for the tests with workers."""
    from cai_dist.cluster.runtime import Cluster
    from cai_dist.config.run import ClusterConfig, TimeoutsConfig

    timeouts = TimeoutsConfig(start=200.0, call=120.0, collective=60.0)
    with Cluster(ClusterConfig(num_cpus=8, object_store_mb=200, timeouts=timeouts)) as running:
        yield running
