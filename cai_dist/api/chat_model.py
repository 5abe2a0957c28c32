"""A causal language model in this process: it answers prompts and scores option labels, without Ray."""

from __future__ import annotations

from collections.abc import Sequence

from cai_dist.api.conversation import PromptLike, conversation
from cai_dist.api.sources import ModelRole, ModelSource, Source, find_model
from cai_dist.config.seeds import stable_seed
from cai_dist.config.training import SamplingConfig
from cai_dist.constitution import Constitution, Labels
from cai_dist.data.chat import ChatFormat
from cai_dist.engines.factory import build_rollout_engine
from cai_dist.errors import DataError
from cai_dist.stages.execution.chat_format import format_of
from cai_dist.stages.execution.generation import Answer, Ask
from cai_dist.types import GenerateRequest, LabelRequest, SamplingParams


class ChatModel:
    """A causal language model and the way in which conversations become its tokens.

        model = ChatModel.load("runs/demo/ppo/model", run="runs/demo")
        model.answer("Tell me about locks.")

    The engine is that of the stages (`engine.backend`), on the first GPU where there is one. `load` makes it.
    """

    def __init__(self, source: ModelSource) -> None:
        self.source, self.config = source, source.config
        self._engine = build_rollout_engine(self.config.engine, self.config.models.dtype)
        self._engine.load(source.path)
        self._formats: dict[Labels, ChatFormat] = {}

    @classmethod
    def load(
        cls,
        source: Source,
        overrides: Sequence[str] = (),
        *,
        run: Source | None = None,
        constitution: Constitution | Source | None = None,
        role: ModelRole = "assistant",
    ) -> ChatModel:
        """The model in a folder or under a hub name; of the folder of a run, the model that plays `role` there.

        Settings (`models`, `engine`, `revise`, `seed`) are those of `run`, the folder of a run or a run file; by
        default those of `source` where it is a run, else the defaults. `overrides` such as "models.chat=plain" are laid
        over them. Raises ConfigError, DataError.
        """
        return cls(find_model(source, role, overrides, run, constitution))

    def answer(self, prompt: PromptLike, *, seed: int | None = None) -> str:
        """The model's answer to a prompt, sampled with `revise.sampling`; thoughts before it are dropped. It may be
        empty. `seed` (default: that of the settings): the same one gives the same answer. Raises DataError for a prompt
        that leaves no room in `models.context`."""
        chat, sampling = self.chat_format(self.source.constitution.templates.labels), self.config.revise.sampling
        asks = [Ask("answer", chat.prompt_ids(conversation(prompt)))]
        [made] = self.answers("answer", asks, chat, sampling, self.config.seed if seed is None else seed)
        if made.finish == "too_long":
            raise DataError(too_long(len(asks[0].prompt_ids), sampling.max_new_tokens, self.config.models.context))
        return made.text

    def chat_format(self, labels: Labels) -> ChatFormat:
        """How conversations become token ids; `labels` are the words before each party's turn in plain form. Raises
        ConfigError where the tokenizer's chat template cannot be used."""
        if labels not in self._formats:
            self._formats[labels] = format_of(self.config.models, labels, self.source.path, self.source.day)
        return self._formats[labels]

    def answers(
        self, label: str, asks: Sequence[Ask], chat: ChatFormat, sampling: SamplingConfig, seed: int
    ) -> list[Answer]:
        """One answer to each prompt, in order. The samples are those that a stage with the run's `seed` draws for its
        first shard under `label`. A prompt that leaves no room in `models.context` gets an empty answer with finish
        `too_long`."""
        room = self.config.models.context - sampling.max_new_tokens
        fitting = tuple(ask.prompt_ids for ask in asks if len(ask.prompt_ids) <= room)
        params = SamplingParams(sampling.max_new_tokens, sampling.temperature, sampling.top_p, chat.stop_ids)
        request = GenerateRequest(fitting, params, stable_seed(seed, label, 0))
        made = iter(self._engine.generate(request) if fitting else ())
        found = []
        for ask in asks:
            if len(ask.prompt_ids) > room:
                found.append(Answer(ask.key, "", "too_long"))
                continue
            sample = next(made)
            thoughts, text = chat.thoughts_and_answer(sample.response_ids.tolist())
            found.append(Answer(ask.key, text, sample.finish, thoughts))
        return found

    def label_logprobs(
        self, prompts: Sequence[tuple[int, ...]], labels: tuple[tuple[int, ...], ...]
    ) -> list[tuple[float, ...] | None]:
        """For each prompt the log-probability (nats) of each label's tokens as its continuation; None where the prompt
        leaves no room for them in `models.context`."""
        room = self.config.models.context - max(map(len, labels))
        fitting = tuple(prompt for prompt in prompts if len(prompt) <= room)
        found = iter(self._engine.score_labels(LabelRequest(fitting, labels)) if fitting else ())
        return [next(found) if len(prompt) <= room else None for prompt in prompts]


def too_long(tokens: int, more: int, context: int) -> str:
    """One line on a conversation of `tokens` tokens that leaves no room for `more` of them in `context`."""
    return (
        f"prompt: {tokens} tokens and {more} more do not fit into models.context={context}; shorten the conversation "
        "or raise models.context as far as the model allows"
    )
