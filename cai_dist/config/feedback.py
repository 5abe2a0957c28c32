"""Stage 3: what compares two answers, and how its probabilities become labels (2212.08073, section 4.1)."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

from pydantic import Field, model_validator

from cai_dist.config.base import Section, StrategyPath
from cai_dist.config.training import SamplingConfig


class ReasoningConfig(Section):
    """The feedback model thinks step by step before it answers; its label is then nearly certain, so it is clamped
    (2212.08073, section 4.1)."""

    clamp: tuple[float, float] | None = (0.4, 0.6)
    """p(A) is cut off to this range (not rescaled); null: no clamp. The paper's best was 40-60%."""
    opening: str = "Let's think step by step:"
    """How the model's answer begins."""
    closing: str = "So the answer is:"
    """What follows the reasoning, just before the option label; reasoning ends where the model itself says it."""
    few_shot: int = Field(0, ge=0)
    """Worked comparisons with reasoning (`few_shot_reasoning` of the constitution) that go before the question."""
    chains: int = Field(1, ge=1)
    """Chains of thought that are sampled about each question, in each order; the label is the mean of what they end in,
    then clamped. The paper averages five (4.3), which softens labels as clamping does."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=128)
    retries: int = Field(1, ge=0)
    """Reasoning that is empty or loops is sampled again, so many times; a chain that still cannot be used is left out,
    and a pair with a question that has no other is left out and counted."""

    @model_validator(mode="after")
    def _range(self) -> ReasoningConfig:
        if self.clamp is not None and not 0 <= self.clamp[0] <= self.clamp[1] <= 1:
            raise ValueError(f"clamp={list(self.clamp)}: must be two probabilities in rising order, such as [0.4, 0.6]")
        return self


_LIKE_A_KEY = re.compile(r"^(sk|gsk|hf|xai|ghp)_?(?=\w*\d)\w{16,}$|(?=[A-Za-z]*\d)[A-Za-z0-9]{24,}|^.{65,}$")
"""What providers' keys begin with, a long run of letters and digits, or simply too long."""


_OURS = frozenset(
    ("model", "messages", "prompt", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "stream", "n")
)
"""Fields of a request that no setting may change."""


def _no_json(value: Any) -> str:
    """Why `value` cannot be sent or noted: "" where it can. It stands in the manifest, so that no key may be in it."""
    if isinstance(value, dict):
        if any(not isinstance(name, str) or _NAMES_A_KEY.search(name) for name in value):
            return "a key or a token of access has no place here; it goes into the environment (api_key_env)"
        return next(filter(None, map(_no_json, value.values())), "")
    if isinstance(value, list):
        return next(filter(None, map(_no_json, value)), "")
    if isinstance(value, str) and re.search(r"^(Bearer\b|(sk|gsk|hf|xai|ghp)[-_]\w)", value):
        return "this looks like a key, whose place is the environment (api_key_env)"
    plain = isinstance(value, str | int | None) or (isinstance(value, float) and math.isfinite(value))
    return "" if plain else "must be plain JSON values"


_NAMES_A_KEY = re.compile(r"(api|access|secret|private)_?-?(key|token)|passw|secret|authorization|bearer", re.I)


class EndpointConfig(Section):
    """A server with the OpenAI-compatible chat completions API. Its answers are kept, by content, in the run folder: no
    question is asked twice."""

    url: str = Field(pattern=r"^https?://[^\s]+$")
    """Such as http://127.0.0.1:8000/v1; `/chat/completions` is added."""
    model: str = Field(min_length=1)
    """The name that the server knows the model by."""
    api_key_env: str = Field("OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The environment variable with the key, read when it is used and never written anywhere; without it no key is
    sent."""
    requests_per_minute: float | None = Field(None, gt=0)
    """Default: no limit of our own."""
    concurrency: int = Field(4, ge=1)
    """Requests under way at once."""
    retries: int = Field(6, ge=0)
    """After a refusal for load (429), a server error or a broken connection; waits double each time from one second up
    to a minute, or are what the server asks for."""
    timeout: float = Field(60.0, gt=0)
    """Seconds for one answer."""
    top_logprobs: int = Field(20, ge=2, le=20)
    """How many alternatives to the first token are asked for; an option that is not among them counts as impossible."""
    max_failed: float = Field(0.01, ge=0, lt=1)
    """Share of the questions of a call that may stay without an answer of use after all retries, and at least one (0:
    none): they count as `failed`. More of them, or one after the other, end the run; the same command goes on."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls the bound of an answer's tokens; newer models of OpenAI want `max_completion_tokens`."""
    min_temperature: float = Field(0.0, ge=0, le=2)
    """The least temperature that is asked for (options are asked for at 0), for a server that refuses 0 (Text
    Generation Inference: 0.01), or whose log-probabilities are those after the temperature (1)."""
    api_key_header: str = Field("Authorization", pattern=r"^[A-Za-z][A-Za-z-]*$", max_length=40)
    """The header that carries the key: `Authorization` (as "Bearer …"), or another with the key alone, such as Azure's
    `api-key`."""
    api_version: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]*$", max_length=32)
    """Sent as `?api-version=`, which Azure wants, such as 2024-10-21."""
    extra_body: dict[str, Any] = {}
    """More fields of each request, such as {chat_template_kwargs: {enable_thinking: false}} for vLLM and SGLang; null
    leaves out one of ours that the server refuses (`seed`, `top_p`, `temperature`)."""

    @model_validator(mode="after")
    def _no_key(self) -> EndpointConfig:
        for name in ("api_key_env", "api_key_header", "api_version"):
            if _LIKE_A_KEY.search(getattr(self, name) or ""):  # not shown
                raise ValueError(
                    f"{name}: this looks like a key; its place is an environment variable, and api_key_env gives the "
                    "name of that, such as OPENAI_API_KEY; replace the key where it has been written down"
                )
        return self

    @model_validator(mode="after")
    def _not_ours(self) -> EndpointConfig:
        if ours := sorted({*self.extra_body} & _OURS):
            raise ValueError(f"extra_body: {', '.join(ours)}: what the run itself decides; leave it out")
        problem = _no_json(self.extra_body)
        if problem:
            raise ValueError(f"extra_body: {problem}")
        return self


class FeedbackConfig(Section):
    """Stage 3: two answers per prompt, compared by the feedback model (paper, section 4.1)."""

    pairs_per_prompt: int = Field(1, ge=1)
    orders: Literal["both", "one"] = "both"
    """`both`: the probability is averaged over (A, B) and (B, A); `one`: the paper's single order."""
    labels: Literal["normal", "inverted", "shuffled"] = "normal"
    """`inverted` (p becomes 1 - p) and `shuffled` are negative controls."""
    principles: int | None = Field(None, ge=1)
    """Use the first n comparison principles; default: all."""
    few_shot: int = Field(0, ge=0)
    per_pair: int = Field(1, ge=1)
    """Principles that each pair is asked under; their probabilities are averaged. 1 is the paper's way (its ensemble is
    over the data set); 16 asks all of a constitution of 16."""
    temperature: float = Field(1.0, gt=0)
    """The label log-probabilities are divided by this before they are normalised; above 1 softens labels."""
    hard: bool = False
    """Labels become 0 or 1 (a tie stays 1/2): the paper's comparison, worse than soft ones."""
    reasoning: ReasoningConfig | None = None
    """Chain-of-thought feedback. Default: plain multiple choice."""
    form: Literal["chat", "text"] = "chat"
    """How the question reaches the feedback model. `chat`: as a human's turn, the label opens the answer; `text`: as
    the bare text of the template, worked comparisons before it, the label right behind it: the paper's form for a
    pretrained model."""
    endpoint: EndpointConfig | None = None
    """Ask a server in place of `models.feedback`. Default: a model of this run's own workers."""
    model: StrategyPath | None = None
    """A feedback model of one's own (docs/extending.md) in place of `models.feedback`, as `package.module:object`.
    Default: none."""
    prefill: str = ""
    """Text that opens the feedback model's answer before the option label, such as "("."""
    option_labels: tuple[str, str] = ("(A)", "(B)")
    """The two continuations whose log-probabilities are compared; several tokens are summed."""
    min_option_mass: float = Field(0.1, ge=0, lt=1)
    """Both options' probabilities together must come to this, or the question counts as `no_label`: below 0.1 not one
    answer in ten would name an option, and what there is of "A" and "B" comes from words that begin so. 0: off."""
    gate: float | None = Field(0.5, ge=0, lt=1)
    """Both orders must prefer the same answer for more than this share of the pairs, the whole 95% interval (over
    prompts) being above it, or the run stops after this stage with exit code 8; what is done stays, and with another
    gate the same command goes on. 0.5 is chance; with `orders: one` there is nothing to judge. null: no gate."""
    sampling: SamplingConfig = SamplingConfig()
    shard_size: int = Field(128, ge=1)
    workers: int = Field(2, ge=1)

    @property
    def elsewhere(self) -> bool:
        """Whether something other than a model of this run's own workers answers: a server, or an object of one's
        own."""
        return self.endpoint is not None or self.model is not None
