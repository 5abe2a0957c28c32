"""Samples of several turns: the policy answers, an environment goes on, until one of them has said enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from cai_dist.config.environment import EnvironmentConfig
from cai_dist.config.seeds import derive_seed
from cai_dist.experience.environments import Conversations, find_environment
from cai_dist.types import GenerateRequest, Generation
from cai_dist.workers.prompt_table import PromptTable

Generate = Callable[[GenerateRequest], Sequence[Generation]]


class ConversationSampler:
    """Makes samples in which an environment speaks between the answers. Its tokens are put behind those that were
    sampled, which are never tokenised again.

    As for single answers, a sample depends on (prompt, number of the prompt, sampling, seed, weights) alone, as far as
    the environment does. Raises ConfigError where there is no such environment.
    """

    def __init__(self, config: EnvironmentConfig, table: PromptTable) -> None:
        self._config, self._table = config, table
        self._make = find_environment(config)
        self._chat = table.format()

    def samples(self, request: GenerateRequest, generate: Generate) -> list[Generation]:
        """One conversation per prompt, in their order. Raises CaiError where the environment fails, and what `generate`
        raises."""
        found = list(generate(request))
        numbers = [request.number(place) for place in range(len(found))]
        seeds = [derive_seed(request.seed, "environment", number) for number in numbers]
        prompts = [self._table.prompts[prompt] for prompt in request.prompts]
        people = Conversations(self._config, self._make, prompts, seeds)
        open_ = list(range(len(found)))
        for turn in range(1, self._config.answers):
            said = people.replies({i: answer for i in open_ if (answer := self._answer(found[i])) is not None})
            spoken = {i: self._chat.next_turn_ids(words) for i, words in said.items()}
            room = self._table.context - request.sampling.max_new_tokens
            open_ = [i for i, ids in spoken.items() if len(found[i].ids) + len(ids) <= room]
            if not open_:
                break
            going_on = replace(
                request,
                prompts=tuple((*found[i].ids.tolist(), *spoken[i]) for i in open_),
                numbers=tuple(numbers[i] for i in open_),
                seed=derive_seed(request.seed, "turn", turn),
            )
            for i, more in zip(open_, generate(going_on), strict=True):
                found[i] = longer(found[i], spoken[i], more)
        return found

    def _answer(self, sample: Generation) -> str | None:
        """The last answer in words; None where the conversation cannot go on: the answer was cut off, or thoughts
        stand before it, which are no part of a conversation that goes on."""
        if sample.finish != "stop":
            return None
        thoughts, answer = self._chat.thoughts_and_answer(sample.turns()[-1][1].tolist())
        return None if thoughts else answer


def longer(sample: Generation, said: Sequence[int], answer: Generation) -> Generation:
    """`sample`, to whose end an environment said `said`, with the model's `answer` to that."""
    before = sample.loss_mask if len(sample.loss_mask) else np.ones(len(sample.response_ids), bool)
    return replace(
        answer,
        prompt_ids=sample.prompt_ids,
        response_ids=np.concatenate([sample.response_ids, np.array(said, np.int32), answer.response_ids]),
        logprobs=np.concatenate([sample.logprobs, answer.logprobs]),
        loss_mask=np.concatenate([before, np.zeros(len(said), bool), np.ones(len(answer.response_ids), bool)]),
    )
