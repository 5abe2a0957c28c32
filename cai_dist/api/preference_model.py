"""The preference model for a notebook: one number for an answer to a prompt (2212.08073, section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cai_dist.api.chat_model import too_long
from cai_dist.api.conversation import PromptLike, answer_text, conversation
from cai_dist.api.sources import ModelSource, Source, find_model
from cai_dist.constitution import Constitution
from cai_dist.data.batches import sample_batch
from cai_dist.engines.training.frozen import LocalScoringEngine
from cai_dist.errors import DataError
from cai_dist.models.load import has_scalar_head, load_config, load_scalar
from cai_dist.stages.execution.answer_scoring import as_sample
from cai_dist.stages.execution.chat_format import format_of
from cai_dist.workers.forward import last_token_scores


class PreferenceModel:
    """A language model with a scalar head that was trained to score the preferred answer higher. `load` makes one.

        model = PreferenceModel.load("runs/demo")
        model.score("How do I open a lock?", "Ask a locksmith.")

    The raw score is the reward of PPO. Only differences between answers to the same prompt mean something:
    sigmoid(raw score of A - raw score of B) is the model's probability that A is preferred to B.
    """

    def __init__(self, source: ModelSource) -> None:
        if not has_scalar_head(source.path):
            made = load_config(source.path).architectures or []
            raise DataError(
                f"preference model: {source.path} holds {', '.join(made) or 'no architecture'}, a model without a "
                "scalar head; give the folder preference/model of a run, or the run itself"
            )
        models = source.config.models
        self._context = models.context
        self._chat = format_of(models, source.constitution.templates.labels, source.path, source.day)
        self._engine = LocalScoringEngine(load_scalar(source.path, models.dtype, 0, models.layout))

    @classmethod
    def load(
        cls,
        source: Source,
        overrides: Sequence[str] = (),
        *,
        run: Source | None = None,
        constitution: Constitution | Source | None = None,
    ) -> PreferenceModel:
        """The model in a folder, or the preference model of a run's folder.

        Settings (`models`) are those of `run`, the folder of a run or a run file; by default those of `source` where it
        is a run, else the defaults. `overrides` such as "models.dtype=bf16" are laid over them. Raises ConfigError, and
        DataError for a model without a trained scalar head.
        """
        return cls(find_model(source, "preference", overrides, run, constitution))

    def score(self, prompt: PromptLike, response: str) -> float:
        """sigmoid(`raw_score`), in 0..1: the probability that this answer is preferred to one with raw score 0.

        It is no probability of being good: the zero of raw scores is arbitrary unless training fixed it, and scores of
        answers to different prompts cannot be compared. Raises DataError, as `raw_score` does.
        """
        raw = self.raw_score(prompt, response)
        return 1.0 / (1.0 + math.exp(-raw)) if raw >= 0 else math.exp(raw) / (1.0 + math.exp(raw))

    def raw_score(self, prompt: PromptLike, response: str) -> float:
        """The scalar head (logits) at the token that ends the answer: the number that PPO takes as its reward.

        `prompt` is a text (one human turn), or turns that end with a human's. Raises DataError for a prompt or an
        answer that is empty, or too long for `models.context` together.
        """
        turns, text = conversation(prompt), answer_text("response", response)
        sample = as_sample(self._chat, turns, text)
        if len(sample.prompt_ids) + len(sample.response_ids) > self._context:
            raise DataError(too_long(len(sample.prompt_ids), len(sample.response_ids), self._context))
        [scores] = self._engine.infer(
            [[sample]], lambda model, items: last_token_scores(model, sample_batch(items).to(self._engine.device))
        )
        return float(scores[0])
