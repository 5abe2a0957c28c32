"""Typed carriers that cross the borders between rooms. No torch, no ray: only the standard library.

Text-side carriers (`Turn`, `Prompt`, `Demonstration`, `Comparison`) describe data in words; token-side carriers
(`TokenSequence`, `Generation`, `Trajectory`) hold token ids as plain tuples: they pickle small and compare equal.
Masks are never stored: they follow from lengths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

Role = Literal["system", "human", "assistant", "critique_request", "critique", "revision_request", "revision"]
PromptKind = Literal["red_team", "helpful"]
Split = Literal["train", "heldout"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation."""

    role: Role
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


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample. `temperature` 0 is greedy. `stop_ids` end a response and are part of it."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop_ids: tuple[int, ...] = ()


Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Generation:
    """One sampled response, token for token as the sampler made it (never re-tokenised)."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Log-probability (nats) of each response token under the distribution that it was drawn from."""
    finish: Finish
    weight_version: int
    """Of the weights that made its last token."""
    engine: str = "hf"
    """Backend that sampled it."""
    versions: tuple[int, ...] = ()
    """Weight version of every response token, where they are not all `weight_version` (a response that was paused and
    went on after an update); empty: they are."""

    @property
    def token_versions(self) -> tuple[int, ...]:
        """`versions`, never empty."""
        return self.versions or (self.weight_version,) * len(self.response_ids)


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One scored sample of PPO: what the rollout phase hands to the update phase. Lists run over response tokens."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    old_logprobs: tuple[float, ...]
    ref_logprobs: tuple[float, ...]
    values: tuple[float, ...]
    rewards: tuple[float, ...]
    """KL-shaped reward per token; the score sits on the last token alone."""
    advantages: tuple[float, ...]
    returns: tuple[float, ...]
    """Targets of the value model; `values` and `returns` are empty for an algorithm without one."""
    score: float
    """Raw preference-model score (logits)."""
    finish: Literal["stop", "length"]
    weight_version: int
    sampler_logprobs: tuple[float, ...]
    """As the sampler gave them; `old_logprobs` are the trainer's where `ppo.old_logprobs` says so."""
    weights: tuple[float, ...]
    """Weight of each token in the policy loss: that of the aggregation times the truncated importance weight."""
    prompt_id: str = ""
    prompt_kind: PromptKind = "red_team"
    versions: tuple[int, ...] = ()
    """As in `Generation`."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One entry of a weight manifest."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class TensorPiece:
    """`count` consecutive elements of a flattened tensor, from element `start` on."""

    name: str
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class WeightPart:
    """What one rank contributes to one bucket of a weight transfer: pieces of tensors, packed one after the other."""

    pieces: tuple[TensorPiece, ...]
    data: Any
    """The elements of all pieces in the dtype of their tensor, as bytes: one flat uint8 array (numpy or torch), or a
    tuple with one such array for each piece."""


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """A low-rank adapter that travels beside the weight that it changes: weight + scaling * b @ a, by the names that
    the three have in the manifest."""

    weight: str
    a: str
    b: str
    scaling: float


@dataclass(frozen=True, slots=True)
class WeightTerms:
    """What a receiver must know of a transfer beside its manifest."""

    sender: str
    """Who the frozen tensors are from: they are the same as long as this is."""
    kept: frozenset[str] = frozenset()
    """Frozen tensors that do not travel: the receiver has them from its last finished transfer."""
    adapters: tuple[AdapterSpec, ...] = ()


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """What one transfer sends: `buckets` hold the tensors of `manifest` that travel."""

    manifest: tuple[TensorSpec, ...]
    buckets: tuple[tuple[TensorSpec, ...], ...]
    terms: WeightTerms | None = None
    """None: the manifest is the plain model, adapters merged, and all of it travels."""


@dataclass(frozen=True, slots=True)
class StepShard(Generic[T]):
    """One rank's part of one optimiser step (or of one scoring pass).

    Every rank of a step gets the same number of micro-batches; an empty micro-batch still runs a forward and a backward
    pass (of zero loss), so that no rank misses a collective call.
    """

    micro_batches: tuple[tuple[T, ...], ...]
    denominator: float = 1.0
    """Global count (over all ranks and micro-batches) that the summed loss is divided by."""


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Prompts for one worker; the same request gives the same samples on any worker: (seed, number of the prompt) alone
    drive sampling."""

    prompts: tuple[tuple[int, ...], ...]
    sampling: SamplingParams
    seed: int
    model: str = ""
    """Folder of the model to answer with; empty: the one that is loaded."""
    first: int = 0
    """Number of the first prompt in the call that this request is a part of: however a call is cut into requests, its
    samples are the same."""


@dataclass(frozen=True, slots=True)
class LabelRequest:
    """For each prompt, the summed log-probability of each label's tokens as continuation."""

    prompts: tuple[tuple[int, ...], ...]
    labels: tuple[tuple[int, ...], ...]
    model: str = ""


@dataclass(frozen=True, slots=True)
class RankInfo:
    """Who a worker is. `master_addr`/`master_port` are those of rank 0 of its own group (torch.distributed)."""

    role: str
    rank: int
    world_size: int
    local_rank: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int = 0


Phase = Literal["rollout", "score", "update", "transfer"]
"""Of one iteration of PPO."""
Part = Literal["weights", "optimizer"]
"""Of a worker's memory. `optimizer`: its states, fp32 masters and gradients; `weights` of a rollout worker: its engine
with all caches."""


@dataclass(frozen=True, slots=True)
class Span:
    """Something that one worker did."""

    role: str
    rank: int
    name: str
    start: float
    """Seconds since 1970, by the clock of the worker's node."""
    end: float


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What to build in a worker process: `target` = "package.module:Class", called as Class(rank_info, **kwargs)."""

    target: str
    kwargs: dict[str, Any]
