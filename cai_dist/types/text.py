"""What the stages read and write, and what training makes of it as token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Speaker = Literal["system", "human", "assistant", "critique_request", "critique", "revision_request", "revision"]
PromptKind = Literal["red_team", "helpful"]
Split = Literal["train", "heldout"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation."""

    role: Speaker
    text: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A partial conversation that ends with a human turn and waits for an answer."""

    id: str
    turns: tuple[Turn, ...]
    kind: PromptKind
    split: Split = "train"


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt with the answer to imitate (supervised fine-tuning)."""

    prompt: Prompt
    response: str
    source: str
    """`revision:K` (K = round, 1-based) or `helpful`."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to one prompt with a soft label."""

    prompt: Prompt
    response_a: str
    response_b: str
    p_a: float
    """Probability in [0, 1] that A is the better answer (the training target)."""
    source: Literal["ai", "human"]
    principle_id: str = ""


@dataclass(frozen=True, slots=True)
class RankedAnswer:
    """One of several answers of people to a question."""

    text: str
    score: int
    """round(log2(1 + votes)), one more if the asker accepted it, -1 if the votes are negative (2112.00861)."""


@dataclass(frozen=True, slots=True)
class RankedQuestion:
    """A question with answers that people have ranked."""

    id: str
    turns: tuple[Turn, ...]
    answers: tuple[RankedAnswer, ...]


@dataclass(frozen=True, slots=True)
class RatedAnswer:
    """An answer with a person's rating of its harmfulness."""

    prompt: Prompt
    response: str
    rating: float
    """From 0 (harmless) to 4."""


@dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    """A multiple-choice question of an evaluation file."""

    id: str
    turns: tuple[Turn, ...]
    options: tuple[str, ...]
    scores: tuple[float, ...]
    """Of each option; the best one is right."""


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Token ids of one training example.

    `weights[t]` is the weight of the loss at *predicting* `ids[t]` from `ids[:t]` (so `weights[0]` is never used);
    0 for the prompt, 1 for tokens to be learned.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class RatedSequence(TokenSequence):
    """A conversation with its answer and the rating, 0 to 4, that a person gave it."""

    rating: float = 0.0


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """Token ids of the two sides of a comparison (conversation + answer + end token) and the target p(A better)."""

    ids_a: tuple[int, ...]
    ids_b: tuple[int, ...]
    p_a: float
    source: Literal["ai", "human"] = "ai"
    prompt_tokens: int = 0
    """Tokens of the conversation with the answer opened: what both sides begin with."""


@dataclass(frozen=True, slots=True)
class LabelledPair(ScoredPair):
    """A pair of preference-model pretraining: one answer with the right label (side A) and with the wrong one."""

    answer_start: int = 0
    """Index in `ids_a` of the first token after the label: from there on the language loss learns."""


@dataclass(frozen=True, slots=True)
class DpoPair(ScoredPair):
    """A comparison with what the reference model says of both answers: log-probability (nats), summed over answer and
    end token."""

    ref_a: float = 0.0
    ref_b: float = 0.0
