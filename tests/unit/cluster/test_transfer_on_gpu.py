"""Weights that stay on the GPU: who is asked for what, in which order. What the workers do is tested in tests/gpu."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cai_dist.cluster.ppo import weight_transfer
from cai_dist.cluster.ppo.weight_transfer import WeightTransfer
from cai_dist.types import TensorSpec, WeightPlan

SPECS = tuple(TensorSpec(str(i), (4,), "float32", 16) for i in range(5))
PLAN = WeightPlan(SPECS, tuple((spec,) for spec in SPECS))


class Group:
    """Notes every call; its answer is the call itself, or the plan."""

    def __init__(self, role: str, size: int, log: list[tuple[Any, ...]]) -> None:
        self.role, self.timeout, self.nodes, self._size, self._log = role, 1.0, frozenset({"node"}), size, log

    def __len__(self) -> int:
        return self._size

    def call(self, rank: int, phase: str, method: str, *args: Any) -> Any:
        self._log.append((self.role, rank, method, args))
        return SimpleNamespace(ref=(self.role, rank, method), result=PLAN if method == "weight_plan" else None)


@pytest.mark.parametrize("ranks", [1, 3])
def test_each_engine_borrows_from_the_rank_of_its_place_and_the_loan_ends(
    monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    log: list[tuple[Any, ...]] = []
    monkeypatch.setattr(weight_transfer, "gather", lambda calls, timeout: [call.result for call in calls])
    monkeypatch.setattr(weight_transfer.ray, "put", lambda value: value)  # the real one would start a Ray
    policy, rollout = Group("policy", ranks, log), Group("rollout", ranks, log)
    sending = WeightTransfer(policy, rollout, "cuda_ipc", 16, 1.0)  # type: ignore[arg-type]
    for version in (7, 8):
        log.clear()
        report = sending.run(version)
        assert report["bytes"] == 80.0 and report["calls"] == len(log) == 1 + 7 * ranks
        lent = [rank for role, rank, method, _ in log if method == "lend_weights"]
        assert lent == list(range(ranks))
        borrowed = {rank: args for role, rank, method, args in log if method == "borrow_weights"}
        assert borrowed == {e: (PLAN, version, ("policy", e, "lend_weights")) for e in range(ranks)}
        order = [method for _, _, method, _ in log]
        assert order.index("end_loan") > max(i for i, name in enumerate(order) if name == "borrow_weights")
        assert order[-ranks:] == ["finish_weights"] * ranks
