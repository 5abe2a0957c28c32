"""What a worker's failure becomes on its way to the driver."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from cai_dist.cluster.actor import WorkerHost
from cai_dist.errors import ConfigError, NonFiniteError, WorkerDiverged, WorkerError


@pytest.fixture
def host() -> WorkerHost:
    made = WorkerHost.__new__(WorkerHost)
    made._role, made._rank, made._node, made._worker = "sft", 1, "10.0.0.2", None
    return made


def test_numbers_that_are_not_finite_have_an_exit_code_of_their_own(host: WorkerHost) -> None:
    problem = "optimiser step 12 is not taken: loss nan (rank 1), gradient norm inf"
    found: Any = pickle.loads(pickle.dumps(host._error("sft: step 12", NonFiniteError(problem))))
    assert isinstance(found, WorkerDiverged) and found.exit_code == 9
    assert str(found) == f"phase sft: step 12: sft[1] on 10.0.0.2: NonFiniteError: {problem}"


def test_other_failures_have_theirs(host: WorkerHost) -> None:
    assert type(host._error("x", RuntimeError("no"))) is WorkerError
    assert host._error("x", RuntimeError("no")).exit_code == 1  # type: ignore[attr-defined]
    mistake = ConfigError("a: no")
    assert host._error("x", mistake) is mistake
