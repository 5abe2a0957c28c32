"""Which prompts an iteration uses: exact mixture, no repeats within an epoch, and nothing but (seed, iteration)."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai_dist.config.seeds import derive_seed
from cai_dist.coordinator.prompt_cursor import choose, digest
from cai_dist.errors import DataError
from tests.unit.coordinator.small_run import make_prompts


@settings(max_examples=60)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 8),
    st.sampled_from([0.0, 0.1, 1 / 3, 0.5, 0.9, 1.0]),
    st.integers(0, 5),
)
def test_mixture_is_exact_and_epochs_are_whole(red: int, helpful: int, count: int, fraction: float, seed: int) -> None:
    pool = make_prompts(red, helpful)
    iterations = 12
    chosen = [choose(pool, count, fraction, seed, i) for i in range(iterations)]
    assert all(len(batch) == count for batch in chosen)
    for kind, size in (("red_team", red), ("helpful", helpful)):
        walked = [prompt.prompt_id for batch in chosen for prompt in batch if prompt.kind == kind]
        share = fraction if kind == "helpful" else 1 - fraction
        assert abs(len(walked) - share * iterations * count) <= 0.5 + 1e-9
        for start in range(0, len(walked) - size + 1, size):
            assert set(Counter(walked[start : start + size]).values()) == {1}
    # In each iteration the share is as near as whole numbers allow.
    helpful_counts = {sum(prompt.kind == "helpful" for prompt in batch) for batch in chosen}
    assert max(helpful_counts) - min(helpful_counts) <= 1


def test_an_iteration_does_not_depend_on_those_before() -> None:
    pool = make_prompts(5, 5)
    forward = [choose(pool, 3, 0.5, 1, i) for i in range(8)]
    assert [choose(pool, 3, 0.5, 1, i) for i in reversed(range(8))] == forward[::-1]
    assert [choose(pool, 3, 0.5, 2, i) for i in range(8)] != forward


def test_a_missing_kind_is_refused_only_where_it_is_wanted() -> None:
    only_red = make_prompts(3, 0)
    assert len(choose(only_red, 4, 0.0, 0, 0)) == 4
    with pytest.raises(DataError, match=r"helpful prompts but there are none.*ppo.helpful_fraction to 0"):
        choose(only_red, 4, 0.5, 0, 0)
    with pytest.raises(DataError, match=r"red_team prompts but there are none.*ppo.helpful_fraction to 1"):
        choose(make_prompts(0, 3), 4, 0.5, 0, 0)


def test_derived_seeds_differ() -> None:
    seeds = {derive_seed(seed, purpose, i) for seed in range(5) for purpose in ("rollout", "update") for i in range(50)}
    assert len(seeds) == 500
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_the_digest_tells_pools_apart() -> None:
    assert digest(make_prompts(3, 2)) == digest(make_prompts(3, 2))
    assert len({digest(make_prompts(3, 2)), digest(make_prompts(2, 3)), digest(make_prompts(3, 2)[::-1])}) == 3
