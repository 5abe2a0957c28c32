"""A cluster that is not there is said to be missing, and soon."""

from __future__ import annotations

import socket
import time

import pytest

from cai_dist.cluster import joining
from cai_dist.cluster.runtime import Cluster
from cai_dist.config.run import ClusterConfig
from cai_dist.errors import ConfigError


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_nobody_listens(port: int) -> None:
    began = time.monotonic()
    with pytest.raises(ConfigError, match=rf"^cluster.address=127.0.0.1:{port}: .* cannot be joined: .*refused"):
        Cluster(ClusterConfig(address=f"127.0.0.1:{port}")).__enter__()
    assert time.monotonic() - began < 5


@pytest.mark.slow
def test_something_else_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections and says nothing: Ray alone would go on asking for many minutes."""
    monkeypatch.setattr(joining, "_JOIN_SECONDS", 6.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConfigError, match="something listens there, but no Ray head within 6 s"):
            Cluster(ClusterConfig(address=address)).__enter__()


@pytest.mark.parametrize("inside", [False, True])
def test_only_a_job_of_rays_own_is_not_rehearsed(inside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rehearsed: list[str] = []
    monkeypatch.setattr(joining, "_rehearse", rehearsed.append)
    monkeypatch.setattr(joining.ray, "init", lambda **_: None)
    if inside:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    joining.join("auto")
    assert rehearsed == ([] if inside else ["auto"])
