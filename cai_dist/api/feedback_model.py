"""The feedback model for a notebook: which of two answers is better under a principle (2212.08073, section 4.1)."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from cai_dist.api.chat_model import ChatModel, too_long
from cai_dist.api.conversation import PromptLike, answer_text, conversation
from cai_dist.api.sources import ModelSource, Source, find_model
from cai_dist.chat_api.http import escaped
from cai_dist.config.training import SamplingConfig
from cai_dist.constitution import ComparisonPrinciple, Constitution
from cai_dist.errors import ConfigError, DataError
from cai_dist.stages.ai_feedback.first_question import low_mass
from cai_dist.stages.ai_feedback.labelling import pair_label, pair_questions
from cai_dist.stages.ai_feedback.local_model import answer_ids, chains_of_thought
from cai_dist.stages.ai_feedback.option_tokens import answer_form, option_tokens
from cai_dist.stages.ai_feedback.questions import Question, Reply, Unanswered, option_mass, with_mass
from cai_dist.stages.execution.generation import Ask
from cai_dist.types import Comparison, Prompt

_SHOWN = SamplingConfig(max_new_tokens=8, temperature=0.0)
"""How the model goes on in place of an option, as far as an error shows it."""


class FeedbackModel:
    """A language model that is asked which of two answers is better; nothing is trained. `load` makes one.

        model = FeedbackModel.load("runs/demo")
        p_a, p_b = model.probabilities("Help me.", "Gladly.", "No.", "danger-1")

    Question, worked examples, option labels, temperature and orders are those of the settings (`feedback`), so that the
    numbers are those of the stage `feedback` for the same model and question. What `feedback` says of training
    (`hard`, `labels`) is not applied.
    """

    def __init__(self, source: ModelSource) -> None:
        # What a server or an object of one's own answers says nothing about a model that is here.
        self.config = source.config.feedback.model_copy(update={"endpoint": None, "model": None})
        self.constitution, self._seed = source.constitution, source.config.seed
        self._model = ChatModel(source)
        self._chat = self._model.chat_format(source.constitution.templates.labels)
        self._options = option_tokens(self._chat, self.config, self.constitution)

    @classmethod
    def load(
        cls,
        source: Source,
        overrides: Sequence[str] = (),
        *,
        run: Source | None = None,
        constitution: Constitution | Source | None = None,
    ) -> FeedbackModel:
        """The model in a folder or under a hub name, or the feedback model of a run's folder.

        Settings (`feedback`, `models`, `engine`, `seed`) and constitution are those of `run`, the folder of a run or a
        run file; by default those of `source` where it is a run, else the defaults. `overrides` such as
        "feedback.orders=one" are laid over them. Raises ConfigError, also where the tokenizer cannot say the option
        labels, and DataError.
        """
        return cls(find_model(source, "feedback", overrides, run, constitution))

    def probabilities(
        self,
        prompt: PromptLike,
        response_a: str,
        response_b: str,
        principle: str | ComparisonPrinciple,
        *,
        number: int = 0,
    ) -> tuple[float, float]:
        """The probabilities that A and that B is the better answer to `prompt`; they sum to 1.

        Each is the probability of an option's label over that of both, averaged over both orders of the answers where
        `feedback.orders` is `both`, and over chains of thought, then clamped, with `feedback.reasoning`.

        Args:
            prompt: a text (one human turn), or turns that end with a human's.
            principle: the id of a comparison principle of the constitution, or a question of your own, such as "Which
                of these is less harmful?".
            number: the pair's number in its stage, which draws the worked examples (`feedback.few_shot`).

        Raises: ConfigError for an id that the constitution does not have, and where the answers name no option with
        `feedback.min_option_mass`; DataError for a prompt or an answer that is empty or too long.
        """
        asked = Prompt("prompt", conversation(prompt), "red_team")
        answers = answer_text("response_a", response_a), answer_text("response_b", response_b)
        pair = Comparison(asked, *answers, 0.5, "ai")
        principles = [self._principle(principle)]
        questions = pair_questions(self.config, self.constitution, self._seed, number, pair, principles)
        prompts = self._prompts(questions)
        replies = self._replies(prompts)
        label = pair_label(self.config, [with_mass(r, self.config.min_option_mass) for r in replies])
        if label is None:
            raise self._refusal(prompts, replies)
        return label.p, 1.0 - label.p

    def _principle(self, given: str | ComparisonPrinciple) -> ComparisonPrinciple:
        if isinstance(given, ComparisonPrinciple):
            return given
        known = {p.id: p for p in self.constitution.comparison_principles}
        if given in known:
            return known[given]
        if len(given.split()) < 2:  # one word is no question
            near = difflib.get_close_matches(given, sorted(known), 3, 0.5) or sorted(known)
            raise ConfigError(
                f"principle={given!r}: the constitution {self.constitution.name} has no such id; give one of "
                f"{', '.join(near)} or a question of your own"
            )
        return ComparisonPrinciple("own", given)

    def _prompts(self, questions: Sequence[Question]) -> list[tuple[int, ...] | Unanswered]:
        """Token ids of all that stands before the option label of each question, or why there is no such."""
        prefill = answer_form(self.config, self.constitution).prefill
        thoughts: Sequence[str | Unanswered] = [""] * len(questions)
        if (reasoning := self.config.reasoning) is not None:
            sampling, chat, model = reasoning.sampling, self._chat, self._model
            thoughts = chains_of_thought(
                self.config, self.constitution.templates.labels, chat, questions,
                lambda attempt, asks: model.answers(f"labels-reasoning-{attempt}", asks, chat, sampling, self._seed),
            )  # fmt: skip
        return [
            t if isinstance(t, Unanswered) else answer_ids(self._chat, self.config, q.turns, t, prefill)
            for q, t in zip(questions, thoughts, strict=True)
        ]

    def _replies(self, prompts: Sequence[tuple[int, ...] | Unanswered]) -> list[Reply]:
        asked = [p for p in prompts if not isinstance(p, Unanswered)]
        found = iter(self._model.label_logprobs(asked, self._options))
        return [p if isinstance(p, Unanswered) else next(found) or Unanswered.TOO_LONG for p in prompts]

    def _refusal(self, prompts: Sequence[tuple[int, ...] | Unanswered], replies: Sequence[Reply]) -> Exception:
        """Why there is no label, from the first question that has no answer."""
        least = self.config.min_option_mass
        i = next(i for i, r in enumerate(replies) if isinstance(with_mass(r, least), Unanswered))
        reply, ids = replies[i], prompts[i]
        if reply is Unanswered.NO_REASONING:
            return DataError(
                "prompt: the reasoning about it is empty or a loop after all retries; raise "
                "feedback.reasoning.sampling.max_new_tokens or feedback.reasoning.retries"
            )
        context = self._model.config.models.context
        if isinstance(ids, Unanswered):
            return DataError(
                f"prompt: models.context={context} leaves no room for reasoning about it; shorten the conversation, "
                "raise models.context or lower feedback.reasoning.sampling.max_new_tokens"
            )
        if isinstance(reply, Unanswered):
            return DataError(too_long(len(ids), max(map(len, self._options)), context))
        return ConfigError(low_mass(self.config, option_mass(reply), "", self._goes_on(ids)))

    def _goes_on(self, ids: tuple[int, ...]) -> str:
        """What the model says in place of an option."""
        [answer] = self._model.answers("refusal", [Ask("refusal", ids)], self._chat, _SHOWN, self._seed)
        return f"it goes on with '{escaped(answer.text)}'" if answer.text else "it goes on with nothing"
