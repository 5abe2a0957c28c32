"""Every computing method of a worker on a GPU that is not there: no operation mixes devices, the numbers are those of
the CPU, and the host waits no more often than it says here.

One process for all that is asked for: it changes torch, which this one must not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cai_dist

ROOT = Path(cai_dist.__file__).parents[1]
WAITS = {
    "language_step": 2,
    "rating_step": 2,
    "preference_step": 2,
    "preference_step_with_lora": 2,
    "pair_scores": 1,
    "pretraining_step": 2,
    "dpo_step": 2,
    "pair_logprobs": 1,
    "pairs_without_adapter": 1,
    "policy_step": 2,
    "policy_step_with_kl_and_entropy": 2,
    "policy_step_by_sequence": 2,
    "policy_step_with_lora": 2,
    "policy_step_padded": 3,
    "policy_logprobs": 1,
    "policy_logprobs_padded": 2,
    "logprobs_without_adapter": 1,
    "reference_logprobs": 1,
    "reward_scores": 1,
    "value_step": 2,
    "values": 1,
    "rollout_sampled": 11,
    "rollout_nucleus": 9,
    "rollout_greedy": 9,
    "labels": 1,
    "weight_transfer": 21,
}
"""Host waits of one call with four micro-batches, of which one is empty (rollouts, labels: ten prompts on eight rows;
the transfer: two of a model of nine tensors). A wait in a micro-batch counts four times."""
TOLERANCE = {"fp32": 1e-6, "bf16": 0.012}
each = pytest.mark.parametrize(
    ("check", "dtype"), [pytest.param(one, dtype, id=f"{one}-{dtype}") for one in WAITS for dtype in TOLERANCE]
)
DEADLINE = 600.0


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """What `python -m tests.dry_gpu` says of the checks that this run of pytest asks for."""
    items = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    names = dict.fromkeys("{check}/{dtype}".format(**item.callspec.params) for item in items)  # type: ignore[attr-defined]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "tests.dry_gpu", *names],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=DEADLINE,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {name: {"error": done.stderr[-3000:]} for name in names} | {line["check"]: line for line in lines}


@each
def test_no_operation_mixes_devices(found: dict[str, dict[str, Any]], check: str, dtype: str) -> None:
    assert found[f"{check}/{dtype}"]["error"] == ""


@each
def test_numbers_are_those_of_the_cpu(found: dict[str, dict[str, Any]], check: str, dtype: str) -> None:
    one = found[f"{check}/{dtype}"]
    assert one["error"] == ""
    assert one["count"] > 0 and one["difference"] <= TOLERANCE[dtype]


@each
def test_the_host_waits_no_more_often(found: dict[str, dict[str, Any]], check: str, dtype: str) -> None:
    one = found[f"{check}/{dtype}"]
    assert one["error"] == ""
    assert sum(one["waits"].values()) <= WAITS[check], "\n".join(f"{n} x {line}" for line, n in one["waits"].items())


def test_no_check_is_left_out() -> None:
    """Names from the text: this process must not import them."""
    text = (ROOT / "tests/dry_gpu/checks.py").read_text("utf-8").partition("CHECKS: ")[2]
    assert set(WAITS) == {name for name in text.replace(",", " ").split() if f"def {name}(at: Place)" in _source()}


def _source() -> str:
    return (ROOT / "tests/dry_gpu/checks.py").read_text("utf-8")
