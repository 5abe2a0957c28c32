"""Critique and revision of one prompt for a notebook (2212.08073, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

from cai_dist.api.chat_model import ChatModel, too_long
from cai_dist.api.conversation import PromptLike, conversation
from cai_dist.api.sources import Source
from cai_dist.constitution import Constitution, CritiquePrinciple
from cai_dist.errors import ConfigError, DataError
from cai_dist.stages.revise import Reviser
from cai_dist.types import Prompt


@dataclass(frozen=True)
class RevisionRound:
    """One round: the answer before it was criticised under a principle and rewritten."""

    principle: CritiquePrinciple | None
    """None where no principle is used (`revise.principles=0`)."""
    critique: str
    """Empty without a critique (`revise.critique=false`, section 3.5), and where it cannot be used."""
    answer: str
    """The revision; the answer of the round before where this one cannot be used."""
    failure: str
    """Empty, or why the round has no revision of its own: `empty`, `runaway`, `copy`, `too_long`, `no_critique`."""


@dataclass(frozen=True)
class RevisedAnswer:
    """The answer to a prompt after its rounds of critique and revision."""

    first: str
    """The model's answer before any revision."""
    rounds: tuple[RevisionRound, ...]
    """In order; fewer than asked for where `revise.unusable=drop` ended them."""

    @property
    def answer(self) -> str:
        """The answer after the last round."""
        return self.rounds[-1].answer if self.rounds else self.first


def critique_and_revise(
    model: ChatModel | Source,
    prompt: PromptLike,
    constitution: Constitution | Source = "default",
    rounds: int = 1,
    *,
    seed: int | None = None,
    prompt_id: str = "prompt",
) -> RevisedAnswer:
    """Let a model answer a prompt, criticise its answer under a drawn principle and rewrite it, `rounds` times.

        model = ChatModel.load("runs/demo")
        found = critique_and_revise(model, "How do I open a lock?", "default", rounds=2)
        found.first, found.rounds[0].critique, found.answer

    The prompts and the reading of what the model writes are those of the stage `revise`, under the model's settings
    (`revise`: sampling, critique, principles, few_shot, retries, unusable).

    Args:
        model: loaded, or what `ChatModel.load` takes.
        prompt: a text (one human turn), or turns that end with a human's.
        constitution: loaded, or what `Constitution.load` takes.
        rounds: 0 or more.
        seed: default: that of the model's settings. Principles and samples follow from `seed` and `prompt_id` alone.
        prompt_id: draws other principles for another prompt.

    Raises: ConfigError; DataError where there is no first answer to revise, with the reason.
    """
    if rounds < 0:
        raise ConfigError(f"rounds={rounds}: must be 0 or more")
    turns = conversation(prompt)
    known = constitution if isinstance(constitution, Constitution) else Constitution.load(constitution)
    asked = model if isinstance(model, ChatModel) else ChatModel.load(model)
    config = asked.config.model_copy(
        update={
            "seed": asked.config.seed if seed is None else seed,
            "revise": asked.config.revise.model_copy(update={"rounds": rounds}),
        }
    )
    chat, sampling = asked.chat_format(known.templates.labels), config.revise.sampling
    reviser = Reviser(
        config, known, chat, lambda label, asks: asked.answers(label, asks, chat, sampling, config.seed), _unlogged
    )
    first, *later = reviser.revise([Prompt(prompt_id, turns, "red_team")])
    if first.failure == "too_long":
        raise DataError(too_long(len(chat.prompt_ids(turns)), sampling.max_new_tokens, config.models.context))
    if first.failure:
        raise DataError(
            f"prompt: the model's answer cannot be used ({first.failure}); take another seed, raise revise.retries or "
            "take another model"
        )
    principles = {p.id: p for p in known.critique_principles}
    return RevisedAnswer(
        first.response,
        tuple(RevisionRound(principles.get(r.principle_id), r.critique, r.response, r.failure) for r in later),
    )


def _unlogged(series: str, step: int, **numbers: float) -> None:
    """No run takes the metrics of a notebook."""
