"""Stage 3: what compares two answers, and how its probabilities become labels (2212.08073, section 4.1)."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from cai_dist.config.base import Section
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

    @model_validator(mode="after")
    def _no_key(self) -> EndpointConfig:
        if _LIKE_A_KEY.search(self.api_key_env):  # not shown
            raise ValueError(
                "api_key_env: this looks like a key; give the name of the environment variable that holds it, such as "
                "OPENAI_API_KEY, and replace the key where it has been written down"
            )
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
