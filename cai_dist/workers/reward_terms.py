"""Reward terms of one's own in processes of their own: they hold no model of this run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cai_dist.config.rewards import RewardTerm
from cai_dist.experience.reward_terms import OwnTerm, TermScores
from cai_dist.types import Generation, Prompt, RankInfo, StepShard, Turn
from cai_dist.workers.base import Worker
from cai_dist.workers.prompt_table import PromptTable


class RewardTermsWorker(Worker):
    """Calls every term about some samples, one after the other."""

    def __init__(self, info: RankInfo, *, terms: Sequence[RewardTerm], table: PromptTable, threads: int = 1) -> None:
        super().__init__(info, threads=threads)
        self._terms = [OwnTerm(term) for term in terms]
        self._prompts = table.prompts
        self._chat = table.format()

    def scores(self, shard: StepShard[Generation]) -> list[TermScores]:
        """Numbers of the samples from each term, in their order. Raises CaiError that names the term."""
        samples = [sample for part in shard.micro_batches for sample in part]
        ids = [tuple(sample.turns()[-1][1].tolist()) for sample in samples]
        prompts = [self._before_last_answer(sample) for sample in samples]
        texts = [self._chat.thoughts_and_answer(response)[1] for response in ids]
        return [term.scores(prompts, texts, ids) for term in self._terms]

    def _before_last_answer(self, sample: Generation) -> Prompt:
        """The prompt, with what was said after it."""
        prompt = self._prompts[tuple(sample.prompt_ids.tolist())]
        said = [
            Turn("assistant", self._chat.response_text(ids.tolist()))
            if by_model
            else Turn("human", self._chat.next_turn_words(ids.tolist()))
            for by_model, ids in sample.turns()[:-1]
        ]
        return replace(prompt, turns=(*prompt.turns, *said))
