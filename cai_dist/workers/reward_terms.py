"""Reward terms of one's own in processes of their own: they hold no model of this run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from cai_dist.config.rewards import RewardTerm
from cai_dist.constitution import Labels
from cai_dist.data.chat import ChatFormat
from cai_dist.experience.reward_terms import OwnTerm, TermScores
from cai_dist.models.ends import end_ids
from cai_dist.models.load import load_tokenizer
from cai_dist.types import Generation, Prompt, RankInfo, StepShard
from cai_dist.workers.base import Worker


@dataclass(frozen=True)
class PromptTable:
    """What reward terms are told besides the tokens of a sample."""

    prompts: Mapping[tuple[int, ...], Prompt]
    """By their token ids; of prompts with the same ids the first."""
    model: str
    """Whose tokenizer turns ids into words."""
    chat: Literal["template", "plain"]
    labels: Labels
    arguments: Mapping[str, Any]
    day: str
    """YYYY-MM-DD."""


class RewardTermsWorker(Worker):
    """Calls every term about some samples, one after the other."""

    def __init__(self, info: RankInfo, *, terms: Sequence[RewardTerm], table: PromptTable, threads: int = 1) -> None:
        super().__init__(info, threads=threads)
        self._terms = [OwnTerm(term) for term in terms]
        self._prompts = table.prompts
        self._chat = ChatFormat(
            load_tokenizer(table.model), table.chat, table.labels, arguments=dict(table.arguments),
            ends=end_ids(table.model), day=date.fromisoformat(table.day),
        )  # fmt: skip

    def scores(self, shard: StepShard[Generation]) -> list[TermScores]:
        """Numbers of the samples from each term, in their order. Raises CaiError that names the term."""
        samples = [sample for part in shard.micro_batches for sample in part]
        ids = [tuple(int(token) for token in sample.response_ids) for sample in samples]
        prompts = [self._prompts[tuple(int(token) for token in sample.prompt_ids)] for sample in samples]
        texts = [self._chat.thoughts_and_answer(response)[1] for response in ids]
        return [term.scores(prompts, texts, ids) for term in self._terms]
