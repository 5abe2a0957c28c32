"""The prompts of PPO in words, for workers whose parts are told them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any, Literal

from cai_dist.constitution import Labels
from cai_dist.types import Prompt

if TYPE_CHECKING:
    from cai_dist.data.chat import ChatFormat


@dataclass(frozen=True)
class PromptTable:
    """What reward terms and environments are told besides the tokens of a sample."""

    prompts: Mapping[tuple[int, ...], Prompt]
    """By their token ids; of prompts with the same ids the first."""
    model: str
    """Whose tokenizer turns ids into words."""
    chat: Literal["template", "plain"]
    labels: Labels
    arguments: Mapping[str, Any]
    day: str
    """YYYY-MM-DD."""
    context: int
    """Tokens of prompt and response at most (`models.context`)."""

    def format(self) -> ChatFormat:
        """The chat format of the run."""
        from cai_dist.data.chat import ChatFormat  # here: the driver, which makes the table, needs no torch
        from cai_dist.models.ends import end_ids
        from cai_dist.models.load import load_tokenizer

        return ChatFormat(
            load_tokenizer(self.model), self.chat, self.labels, arguments=dict(self.arguments),
            ends=end_ids(self.model), day=date.fromisoformat(self.day),
        )  # fmt: skip
