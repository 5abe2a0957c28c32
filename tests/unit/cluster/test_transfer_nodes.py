"""Memory is shared on one node only: found before anything is sent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cai_dist.cluster.ppo.weight_transfer import WeightTransfer
from cai_dist.errors import ConfigError


def group(*nodes: str) -> Any:
    return SimpleNamespace(nodes=frozenset(nodes))


def test_shared_memory_is_refused_where_workers_are_on_several_nodes() -> None:
    one = group("10.0.0.1")
    WeightTransfer(one, one, "shared_memory", 1, 1.0)
    for policy, rollout in ((one, group("10.0.0.2")), (group("10.0.0.1", "10.0.0.2"), one)):
        with pytest.raises(ConfigError, match="one node but are on 10.0.0.1, 10.0.0.2; set ppo.transfer to") as found:
            WeightTransfer(policy, rollout, "shared_memory", 1, 1.0)
        assert len(str(found.value).splitlines()) == 1
        WeightTransfer(policy, rollout, "object_store", 1, 1.0)
