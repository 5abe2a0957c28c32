"""Row 18: the tokens that were sampled are the tokens that are scored and learned from, bit for bit. They are such as
words would not bring back: special ids, ids that a tokenizer would have merged, an end token in the middle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from cai_dist.coordinator.prompt_cursor import TokenizedPrompt
from cai_dist.coordinator.state import PpoState
from cai_dist.coordinator.update_phase import run as update
from cai_dist.data.batches import sample_batch, trajectory_batch
from cai_dist.types import Generation, SampleRef, SamplingParams
from cai_dist.world.tokenizer import build_tokenizer
from tests.fakes import FakeParts, FakePending, FakeRoles, collect
from tests.ids import prompt_of, response_of
from tests.unit.coordinator.small_run import make_config

TOKENIZER = build_tokenizer()
SPECIAL = tuple(TOKENIZER.all_special_ids)
STOP = int(TOKENIZER.eos_token_id)
PROMPTS = [TokenizedPrompt(f"p{n}", "red_team", (n + 1, *SPECIAL, 7, 7)) for n in range(4)]
RESPONSES = [
    (STOP,),
    (*SPECIAL, 5, STOP),
    (5, 5, 0, 5, STOP),
    tuple(reversed(SPECIAL)) + (9, 9),
]


class Watched(FakeRoles):
    """Samples the responses above and notes the ids that every role is asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {}

    def generate(self, prompts: Sequence[tuple[int, ...]], sampling: SamplingParams, seed: int) -> FakeParts:
        made = [
            Generation(prompt, ids, (-1.0,) * len(ids), "stop" if ids[-1] == STOP else "length", 0)
            for prompt, ids in zip(prompts, RESPONSES, strict=True)
        ]
        return self.sampled(prompts, self._call("generate", lambda: made))

    def note(self, name: str, samples: Sequence[SampleRef]) -> None:
        items = self.fetch([sample.row for sample in samples])
        self.asked.setdefault(name, []).extend((prompt_of(item), response_of(item)) for item in items)

    def policy_logprobs(self, samples: Sequence[SampleRef], temperature: float) -> FakePending[list[Any]]:
        self.note("policy", samples)
        return super().policy_logprobs(samples, temperature)

    def reference_logprobs(self, samples: Sequence[SampleRef], temperature: float) -> FakePending[list[Any]]:
        self.note("reference", samples)
        return super().reference_logprobs(samples, temperature)

    def values(self, samples: Sequence[SampleRef]) -> FakePending[list[Any]]:
        self.note("value", samples)
        return super().values(samples)

    def scores(self, samples: Sequence[SampleRef]) -> FakePending[list[float]]:
        self.note("reward", samples)
        return super().scores(samples)


def test_the_test_would_notice_words() -> None:
    """Text and back gives other ids."""
    for ids in RESPONSES[1:]:
        again = TOKENIZER(TOKENIZER.decode(list(ids), skip_special_tokens=True), add_special_tokens=False)["input_ids"]
        assert tuple(again) != ids


@pytest.mark.parametrize("old", ["trainer", "sampler"])
def test_every_role_gets_the_ids_that_were_sampled(old: str) -> None:
    config = make_config(
        samples_per_prompt=1, helpful_fraction=0.0, old_logprobs=old, epochs=1, value_warmup=0, iterations=1
    )
    roles = Watched()
    rollout = collect(roles, PROMPTS, config, (STOP,), PpoState.start(config), 1)
    chosen = [prompt_of(item) for item in rollout.trajectories]
    expected = list(zip(chosen, RESPONSES, strict=True))
    assert sorted(chosen) == sorted(prompt.ids for prompt in PROMPTS)
    assert set(roles.asked) == {"reference", "value", "reward"} | ({"policy"} if old == "trainer" else set())
    assert all(asked == expected for asked in roles.asked.values())
    assert [response_of(item) for item in rollout.trajectories] == RESPONSES
    assert all(item.sampler_logprobs.tolist() == [-1.0] * len(item.response_ids) for item in rollout.trajectories)
    update(roles, rollout, config, PpoState.start(config), 1)
    trained = [(prompt_of(item), response_of(item)) for role, batch in roles.updates for item in batch]
    assert sorted(trained) == sorted(expected * 2)


def test_a_batch_holds_the_ids_as_they_are() -> None:
    config = make_config(samples_per_prompt=1, helpful_fraction=0.0)
    items = collect(Watched(), PROMPTS, config, (STOP,), PpoState.start(config), 1).trajectories[:]
    flat = [token for item in items for token in (*prompt_of(item), *response_of(item))]
    assert trajectory_batch(items).tokens.ids.tolist() == sample_batch(items).ids.tolist() == flat
    mask = sample_batch(items).response_mask
    assert sample_batch(items).ids[mask].tolist() == [token for ids in RESPONSES for token in ids]
