"""Rows 20, 21 and 27: every algorithm by hand on two prompts with three samples each, and what must hold for all."""

from __future__ import annotations

import math
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cai_dist.config.algorithms import DEFAULTS
from cai_dist.config.ppo import KlConfig, PpoConfig
from cai_dist.errors import ConfigError
from cai_dist.experience.algorithms.registry import ALGORITHMS
from cai_dist.experience.moments import Moments, Whitening
from cai_dist.experience.rewards import Shaped, shape

SCORES = [1.0, 2.0, 6.0, 0.0, 0.0, 3.0]
"""Means 3 and 1."""
LENGTHS = [1, 2, 1, 2, 1, 1]
LOG_RATIOS = [[0.5], [1.0, -0.5], [0.0], [0.0, 0.0], [-0.5], [1.0]]
"""log p - log q of every token; sums 0.5, 0.5, 0, 0, -0.5, 1."""
GROUP_ALGORITHMS = [name for name, defaults in DEFAULTS.items() if defaults.needs_group]


def config_of(algorithm: str, **changes: Any) -> PpoConfig:
    return PpoConfig.model_validate(
        {"algorithm": algorithm, "prompts_per_iteration": 2, "samples_per_prompt": 3, "mini_batch": 6}
        | {"policy": {"ranks": 1, "micro_batch": 1}, "value": {"ranks": 1, "micro_batch": 1}}
        | changes
    )


def shaped(
    config: PpoConfig, beta: float = 0.2, scores: list[float] = SCORES, ratios: list[list[float]] = LOG_RATIOS
) -> Shaped:
    """As it reaches the loss: whitened where the settings ask for it."""
    logprobs = [[-1.0] * len(row) for row in ratios]
    reference = [[-1.0 - ratio for ratio in row] for row in ratios]
    values = [[0.5] * (len(row) + 1) for row in ratios] if config.defaults.needs_value else None
    found = shape(
        logprobs, reference, values, torch.tensor(scores, dtype=torch.float64), [False] * len(scores), config, beta
    )
    if not config.whitens:
        return found
    whitening = Whitening.by(Moments.of(found.advantages[found.mask].tolist()))
    advantages = torch.zeros_like(found.advantages)
    advantages[found.mask] = torch.from_numpy(whitening.apply(found.advantages[found.mask].numpy()))
    return replace(found, advantages=advantages)


def rows(found: Shaped) -> list[list[float]]:
    return [row[: int(mask.sum())].tolist() for row, mask in zip(found.advantages, found.mask, strict=True)]


def padding(found: Shaped) -> set[float]:
    return set(found.advantages[~found.mask].tolist())


def flat(found: list[list[float]]) -> list[float]:
    return [number for row in found for number in row]


def on_tokens(*numbers: float) -> list[float]:
    return flat([[number] * length for number, length in zip(numbers, LENGTHS, strict=True)])


def test_every_algorithm_of_the_configuration_is_there() -> None:
    assert ALGORITHMS.keys() == DEFAULTS.keys()


def test_rloo_by_hand() -> None:
    # Rewards of whole responses at beta 0.2: 0.9, 1.9, 6 and 0, 0.1, 2.8. Baselines: means of the two others,
    # 3.95, 3.45, 1.4 and 1.45, 1.4, 0.05.
    found = rows(shaped(config_of("rloo")))
    assert flat(found) == pytest.approx(on_tokens(-3.05, -1.55, 4.6, -1.45, -1.3, 2.75))


def test_grpo_by_hand() -> None:
    # The KL is in the loss: the scores alone. Sample deviations sqrt 7 and sqrt 3 (plus 1e-4).
    wanted = [x / (math.sqrt(7) + 1e-4) for x in (-2, -1, 3)] + [x / (math.sqrt(3) + 1e-4) for x in (-1, -1, 2)]
    found = shaped(config_of("grpo"))
    assert flat(rows(found)) == pytest.approx(on_tokens(*wanted))
    assert found.rewards.sum().item() == sum(SCORES) and found.returns is None


def test_dr_grpo_by_hand() -> None:
    found = shaped(config_of("dr-grpo"))
    assert flat(rows(found)) == on_tokens(-2, -1, 3, -1, -1, 2) and padding(found) == {0.0}


def test_reinforce_by_hand() -> None:
    # Sums to the end of score - 0.2 log ratio: 0.9; (1.9, 2.1); 6; (0, 0); 0.1; 2.8.
    to_go = [0.9, 1.9, 2.1, 6.0, 0.0, 0.0, 0.1, 2.8]
    assert flat(rows(shaped(config_of("reinforce++", whiten_advantages=False)))) == pytest.approx(to_go)
    mean = sum(to_go) / 8
    deviation = math.sqrt(sum((x - mean) ** 2 for x in to_go) / 8)
    # The default: one baseline and one deviation for all tokens of the batch.
    found = flat(rows(shaped(config_of("reinforce++"))))
    assert found == pytest.approx([(x - mean) / deviation for x in to_go])
    discounted = flat(rows(shaped(config_of("reinforce++", whiten_advantages=False, gamma=0.5))))
    assert discounted[1:3] == pytest.approx([-0.2 + 0.5 * 2.1, 2.1])


def test_reinforce_with_group_baseline_by_hand() -> None:
    # Scores minus their prompt's mean on every token (the KL is in the loss), then whitened over all eight tokens.
    centred = on_tokens(-2, -1, 3, -1, -1, 2)
    mean = sum(centred) / 8
    deviation = math.sqrt(sum((x - mean) ** 2 for x in centred) / 8)
    found = flat(rows(shaped(config_of("reinforce++-group"))))
    assert found == pytest.approx([(x - mean) / deviation for x in centred])
    # With the KL in the rewards a token sees the penalties still to come, the baseline is of the scores alone.
    both = config_of("reinforce++-group", kl=KlConfig(where="reward"), whiten_advantages=False)
    assert rows(shaped(both))[1] == pytest.approx([-1 - 0.2 * 0.5, -1 + 0.2 * 0.5])


def test_gspo_has_the_advantages_of_grpo_and_a_ratio_per_response() -> None:
    assert rows(shaped(config_of("gspo"))) == rows(shaped(config_of("grpo")))
    assert config_of("gspo").defaults.ratio == "sequence" and config_of("grpo").defaults.ratio == "token"
    assert config_of("gspo").aggregation == "sequence"


def test_ppo_sums_penalties_and_score_over_the_values() -> None:
    # lambda = gamma = 1: return to go minus the value of 0.5.
    found = shaped(config_of("ppo", gae_lambda=1.0, whiten_advantages=False))
    assert flat(rows(found)) == pytest.approx([x - 0.5 for x in (0.9, 1.9, 2.1, 6.0, 0.0, 0.0, 0.1, 2.8)])
    with pytest.raises(ValueError, match="needs the values"):
        shape([[0.0]], [[0.0]], None, torch.zeros(1), [False], config_of("ppo"), 0.1)


@pytest.mark.parametrize("where", ["reward", "loss"])
@pytest.mark.parametrize("algorithm", GROUP_ALGORITHMS)
def test_equal_scores_teach_nothing(algorithm: str, where: Any) -> None:
    """Row 20: the first prompt's scores are all 0.1 (a number that rounds), the second's differ."""
    config = config_of(algorithm, kl=KlConfig(where=where), whiten_advantages=False)
    found = rows(shaped(config, 0.0, scores=[0.1, 0.1, 0.1, 0.0, 1.0, 2.0]))
    assert flat(found[:3]) == [0.0] * 4
    assert any(flat(found[3:])) and all(map(math.isfinite, flat(found)))


@pytest.mark.parametrize("algorithm", list(DEFAULTS))
def test_whole_batches_of_equal_samples_stay_finite(algorithm: str) -> None:
    config = config_of(algorithm, whiten_advantages=True)
    found = shaped(config, 0.0, scores=[2.5] * 6, ratios=[[0.0, 0.0]] * 6)
    assert torch.isfinite(found.advantages).all() and found.advantages.abs().max() <= 1 + 1e-6


@settings(max_examples=40)
@given(
    st.sampled_from(list(DEFAULTS)),
    st.lists(st.floats(-5, 5), min_size=6, max_size=6),
    st.lists(st.lists(st.floats(-2, 2), min_size=1, max_size=5), min_size=6, max_size=6),
)
def test_whitened_advantages_have_mean_zero_over_the_batch(
    algorithm: str, scores: list[float], ratios: list[list[float]]
) -> None:
    found = shaped(config_of(algorithm, whiten_advantages=True), 0.2, scores, ratios)
    assert found.advantages[found.mask].mean().item() == pytest.approx(0.0, abs=1e-9)
    assert (found.advantages[~found.mask] == 0).all()


@settings(max_examples=30)
@given(st.sampled_from(GROUP_ALGORITHMS), st.permutations(range(2)), st.permutations(range(3)))
def test_only_the_group_matters_not_its_place(algorithm: str, prompts: list[int], samples: list[int]) -> None:
    """Prompts in another order, samples of a prompt in another order: the same advantages for the same samples."""
    order = [3 * prompt + sample for prompt in prompts for sample in samples]
    config = config_of(algorithm)
    straight = rows(shaped(config))
    moved = rows(shaped(config, scores=[SCORES[i] for i in order], ratios=[LOG_RATIOS[i] for i in order]))
    assert flat(moved) == pytest.approx(flat([straight[i] for i in order]))


def test_defaults_and_what_overrides_them() -> None:
    grpo = config_of("grpo")
    assert (grpo.kl_where, grpo.kl_estimator, grpo.aggregation, grpo.whitens) == ("loss", "k3", "sequence", False)
    other = config_of("grpo", kl=KlConfig(where="reward"), aggregate="token", whiten_advantages=True)
    assert (other.kl_where, other.kl_estimator, other.aggregation, other.whitens) == ("reward", "k1", "token", True)
    assert config_of("rloo", kl=KlConfig(where="loss")).kl_estimator == "k2"
    assert config_of("rloo", kl=KlConfig(estimator="k3")).kl_estimator == "k3"
    ppo = config_of("ppo")
    assert (ppo.kl_where, ppo.kl_estimator, ppo.aggregation, ppo.whitens) == ("reward", "k1", "token", True)
    assert config_of("ppo", whiten_advantages=False).whitens is False
    assert ppo.roles == ("policy", "value", "reference", "reward", "rollout")
    assert grpo.roles == ("policy", "reference", "reward", "rollout") and grpo.trained_roles == ("policy",)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("Estimate(batch.mask.double()[:, :1])", "advantages of shape [6, 1], must be [6, 2]"),
        ("Estimate(batch.mask.double() * float('nan'))", "gave advantages that are not finite"),
        ("Estimate(batch.mask.double(), batch.mask.double())", "must not give returns, as its needs_value=False says"),
        ("batch.mask", "must give an Estimate, gave a Tensor"),
    ],
)
def test_what_an_algorithm_gives_is_looked_at(
    made: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"algo_{zlib.crc32(made.encode())}"
    source = (
        f"from cai_dist.experience.algorithms.protocol import Estimate\n\ndef f(batch, config):\n    return {made}\n"
    )
    (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        shaped(config_of(f"{name}:f"))
    assert f"ppo.algorithm={name}:f: {message}" in str(caught.value)
