"""Ranks that compute each packed row together say and learn what one rank alone does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.architectures import ARCHITECTURES
from tests.spread_rows import architectures, furthest, kept, passes
from tests.spread_workers import jobs_of
from tests.tiny import save_llama
from tests.two_ranks import on_ranks, on_two_ranks

SPREAD = {"sequence_parallel": 2, "micro_batch": 3}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llama(tmp_path_factory.mktemp("model"), tied=False, seed=1)


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> str:
    """With four heads and two key-value heads."""
    folder = tmp_path_factory.mktemp("grouped")
    next(one for one in ARCHITECTURES if one.name == "Llama 3").network().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("scalar", [False, True])
def test_what_is_said_of_every_row_and_its_gradient(model: str, scalar: bool) -> None:
    """Odd numbers of tokens, sequences that end, begin or straddle where one rank's stretch ends, shorter ones, a last
    stretch in which nothing is learned. Logits to 1e-6, gradients to 1e-5."""
    first, second = on_two_ranks(passes, source=model, scalar=scalar)
    assert len(first) == 12
    for found in (first, second):
        assert {name: numbers for name, numbers in found.items() if not numbers[0] < 1e-6} == {}
        assert {name: numbers for name, numbers in found.items() if not numbers[1] < 1e-5} == {}


def test_each_rank_keeps_its_part_of_the_activations(model: str) -> None:
    assert on_two_ranks(kept, source=model) == pytest.approx([0.5, 0.5], abs=0.01)


def compare(folder: Path, world: int, jobs: list[dict[str, Any]]) -> None:
    """Scores, metrics, gradients and weights of the jobs on `world` ranks against those of the same on one."""
    alone = [job | {"name": f"{job['name']}, alone", "sharding": {"zero": 0, "micro_batch": 2}} for job in jobs]
    on_ranks(world, jobs_of, jobs=jobs, folder=str(folder))
    on_ranks(1, jobs_of, jobs=alone, folder=str(folder))
    for job in jobs:
        name = job["name"]
        found, expected = (torch.load(folder / f"{one}.pt") for one in (name, f"{name}, alone"))
        assert furthest(found["gradients"], expected["gradients"]) < 1e-5, name
        assert furthest(found["weights"], expected["weights"]) < 1e-4, name
        for mine, theirs in zip(found["metrics"], expected["metrics"], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-5), name
        assert all(step["grad_norm"] > 0.1 for step in found["metrics"]), "every step is clipped"
        for mine, theirs in zip(found["said"] or [], expected["said"] or [], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-5), name


@pytest.mark.slow
def test_steps_of_every_role(model: str, tmp_path: Path) -> None:
    """On real ZeRO: three steps, clipped, from the same scores and gradients to the same weights."""
    again = {"gradient_checkpointing": True}
    shardings = [("sft", {"zero": zero, "gradient_checkpointing": zero in (2, 3)}) for zero in range(4)]
    shardings += [("preference", {"zero": 2}), ("pretraining", {"zero": 0}), ("rating", {"zero": 1})]
    shardings += [("dpo", {"zero": 3}), ("policy", {"zero": 3} | again), ("value", {"zero": 2} | again)]
    jobs = [
        {"name": f"{role} {number}", "role": role, "source": model, "sharding": SPREAD | more}
        for number, (role, more) in enumerate(shardings)
    ]
    compare(tmp_path, 2, jobs)


@pytest.mark.slow
def test_groups_beside_groups_and_fewer_keys_than_ranks(grouped: str, tmp_path: Path) -> None:
    """Four ranks: two groups with data of their own, or one in which two ranks share a key-value head."""
    four = {"sequence_parallel": 4, "micro_batch": 2}
    jobs: list[dict[str, Any]] = [
        {"name": "two by two", "role": "sft", "source": grouped, "sharding": SPREAD | {"zero": 2}},
        {"name": "policy", "role": "policy", "source": grouped, "sharding": SPREAD | {"zero": 3}},
        {"name": "four", "role": "value", "source": grouped, "sharding": four | {"zero": 3}},
        {"name": "lora", "role": "policy", "source": grouped, "sharding": four | {"zero": 2}, "lora": {"rank": 2}},
    ]
    compare(tmp_path, 4, jobs)


@pytest.mark.full
def test_every_architecture_that_can_be_packed(tmp_path: Path) -> None:
    sources = {}
    for number, one in enumerate(ARCHITECTURES):
        one.network().save_pretrained(tmp_path / str(number))
        sources[one.name] = str(tmp_path / str(number))
    found = on_two_ranks(architectures, sources=sources)[0]
    assert {name: words for name, words in found.items() if words not in ("same", "refused")} == {}
    assert sum(words == "same" for words in found.values()) > 20
