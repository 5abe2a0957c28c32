"""The control plane by simulation (benchmarks/scale.py), at a size that fits a test: what is counted, never times.

With --full: some thirty processes for numbers that change with the control plane alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.full
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """8 and 16 GPUs with responses of 64 tokens, then 8 with 256; in a process of its own, which starts Ray anew."""
    folder = tmp_path_factory.mktemp("scale")
    command = [sys.executable, str(ROOT / "benchmarks" / "scale.py"), "--gpus", "8", "16", "--lengths", "64", "256"]
    command += ["--at", "8", "--iteration", "0.2", "--iterations", "1", "--hosts", "1", "--start", "0"]
    done = subprocess.run(
        [*command, "--results", str(folder), "--figures", str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=900, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[dict[str, Any]] = json.loads((folder / "scale.json").read_text())["rows"]
    return found


def test_calls_by_hand(rows: list[dict[str, Any]]) -> None:
    # 8 GPUs: 2 policy, 1 value, 1 reference, 1 reward, 3 rollout; 32 samples in 4 requests and 4 chunks.
    generate, score, refs, train, reports = 4, 4 * (2 + 1 + 1 + 1), 2, 2 * 4 * (2 + 1), 8
    transfer = 1 + 3 + 2 + 3 + 2 + 3  # plan, begin, send, take, probe, finish
    assert rows[0]["calls"] == generate + score + refs + train + reports + transfer


def test_calls_grow_with_the_workers_and_not_with_the_tokens(rows: list[dict[str, Any]]) -> None:
    small, large, longer = rows
    assert (large["gpus"], longer["length"]) == (16, 256)
    assert large["calls"] / 16 <= 1.05 * small["calls"] / 8
    assert longer["calls"] == small["calls"]


def test_a_manifest_leaves_the_driver_once(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert sum(row["mb_of"][name] for name in ("begin_weights", "broadcast_weights", "take_broadcast")) < 0.01


def test_what_passes_through_the_driver_does_not_grow_with_the_responses(rows: list[dict[str, Any]]) -> None:
    """Four times the tokens. What a driver that carried them would add: ids and numbers to and from every role."""
    small, _, longer = rows
    tokens = longer["tokens"] - small["tokens"]
    assert tokens > 4_000
    for way in ("mb_out", "mb_back"):
        assert abs(longer[way] - small[way]) * 1e6 < 0.1 * tokens
