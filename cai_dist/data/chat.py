"""Chat formats, between conversations in words and token ids, in the one way that a given model expects.

The prompt is tokenised first and alone, the answer is tokenised as what goes on from it and put behind it. So the
prompt's ids are the same whether the model is to continue it, to be trained on an answer to it, or to be scored on one:
the place where an answer begins is one, found when the format is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from functools import cached_property
from typing import Any, Literal

from cai_dist.constitution.schema import Labels
from cai_dist.data.marks import Marks
from cai_dist.data.template import Arguments, ChatTemplate, Message
from cai_dist.data.thoughts import ThoughtIds, split_thoughts, thought_ids
from cai_dist.errors import ConfigError
from cai_dist.types import Speaker, TokenSequence, Turn

_SPOKEN_BY_MODEL = ("assistant", "critique", "revision")
_PROBE = "qxz"
"""A made-up word, where any would do."""


class ChatFormat:
    """Turns -> ids and ids -> text for one tokenizer.

    `template`: the tokenizer's own chat template, given `arguments`. Answers, critiques and revisions are assistant
    messages; requests for them are user messages that open with their label. System turns that the template has no
    place for open the next user message. An answer stands where the template puts one: where it writes closed thoughts
    before an answer, every prompt ends with them, and the model answers without thinking aloud. `plain`:
    "\\n\\nHuman: … \\n\\nAssistant:" with a label before every turn, behind what the tokenizer puts in front.

    Text that spells a mark of the chat's form (see `Marks`) is broken up, so that nobody can end a turn or open one
    from inside it; labels without brackets ("USER:", "Human:") are words like any.

    `ends`: further tokens that end a turn, such as those of generation_config.json; those that are no special tokens
    here are passed over. `day`: what a template is told that asks for the date; by default today's, in UTC.

    Raises ConfigError where `mode` is `template` and the template is missing or cannot be used (see `ChatTemplate`),
    and where no token can end an answer.
    """

    def __init__(
        self,
        tokenizer: Any,
        mode: Literal["template", "plain"] = "template",
        labels: Labels | None = None,
        *,
        arguments: Arguments | None = None,
        ends: Sequence[int] = (),
        day: date | None = None,
    ):
        self.tokenizer = tokenizer
        self.mode = mode
        self.labels = labels or Labels()
        self._template = ChatTemplate(tokenizer, arguments, day) if mode == "template" else None
        self._marks = Marks(tokenizer, *((self._template.source, self._template.frames) if self._template else ()))
        self._front = self._put_in_front()
        own = tokenizer.eos_token_id
        known = [i for i in ends if i in self._marks.special_ids and i != tokenizer.unk_token_id]
        self.eos_id = self._end_of_answer(known)
        self.stop_ids: tuple[int, ...] = _different((self.eos_id, *(() if own is None else (int(own),)), *known))
        self.pad_id = self._padding()

    @cached_property
    def thought_ids(self) -> ThoughtIds:
        """How thoughts before an answer open and close, as this tokenizer's ids."""
        return thought_ids(self.tokenizer, self._marks.thoughts)

    def prompt_ids(
        self, turns: Sequence[Turn], answer_role: Speaker = "assistant", prefill: str = ""
    ) -> tuple[int, ...]:
        """Ids of the conversation with the answer of `answer_role` opened, and `prefill` as its first words.

        With `human` it is the human's turn that is opened, for a model that is to write prompts.
        """
        if self._template is None:
            ids = self._plain([*turns, Turn(answer_role, "")])
        elif answer_role == "human":
            ids = self._tokens(self._template.around(self._messages(turns))[0].rstrip(" "))
        else:
            ids = self._tokens(self._template.prompt(self._messages(turns)))
        return (*ids, *self._continuation(prefill, answer_role)) if prefill else ids

    def next_turn_ids(self, words: str) -> tuple[int, ...]:
        """Ids of a human's turn, and of the next answer opened, as they go on from an answer that ended with its end
        token: put behind the ids of a conversation, they leave it as it was sampled."""
        if self._template is None:
            return self._plain([Turn("human", words), Turn("assistant", "")])[len(self._front) :]
        before, after = self._template.after_earlier_answer, self._template.before_answer
        ids = self._tokens(before + self._marks.harmless(words) + after)
        ends = {*self.stop_ids, *self.human_stop_ids()}
        closed = next((n + 1 for n, i in enumerate(self._tokens(before)) if i in ends), 0)  # it has been sampled
        return ids[closed:]

    def next_turn_words(self, ids: Sequence[int]) -> str:
        """The words of a human's turn as `next_turn_ids` makes it."""
        before, after = self._around_next_turn
        return str(self._text(ids[before : len(ids) - after]))

    @cached_property
    def _around_next_turn(self) -> tuple[int, int]:
        """How many ids of `next_turn_ids` come before those of its words, and after them."""
        one, other = (self.next_turn_ids(words) for words in (_PROBE, "kvj"))
        if one == other:  # a vocabulary of whole words knows neither
            at = one.index(self._tokens(_PROBE)[0])
            return at, len(one) - at - 1
        return _same(one, other), _same(one[::-1], other[::-1])

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Ids of bare text, of no conversation, for a model that is to continue it."""
        return self._opened(self._marks.harmless(text))

    def example(self, turns: Sequence[Turn], response: str, answer_role: Speaker = "assistant") -> TokenSequence:
        """The conversation with its answer and the end token; weight 1 on answer and end token, 0 on the prompt.

        The ids start with exactly `prompt_ids(turns, answer_role)`.
        """
        prompt = self.prompt_ids(turns, answer_role)
        answer = (*self._continuation(response, answer_role), self.eos_id)
        return TokenSequence((*prompt, *answer), (0.0,) * len(prompt) + (1.0,) * len(answer))

    def human_stop_ids(self) -> tuple[int, ...]:
        """The tokens that end a human's turn: what the template has after one, and what ends an answer as the model's
        files have it. In plain form no token does: the turn ends where the text goes on with another label."""
        ends = tuple(i for i in self.stop_ids if i != self.eos_id or i == self.tokenizer.eos_token_id)
        if self._template and (after := self._marks.first(self._template.around(())[1])) is not None:
            ends = _different((after, *ends))
        return ends

    def human_end(self) -> str:
        """The words that end a human's turn where the template has some before, or in place of, a special token (such
        as "[/INST]"); "" where no words do. What a model writes as a human goes up to them."""
        if self._template is None:
            return ""
        return self._marks.before_first(self._template.around(())[1]).strip()

    def response_text(self, ids: Sequence[int]) -> str:
        """The words of an answer: thoughts before it, special tokens and the white space around it are dropped."""
        return self.thoughts_and_answer(ids)[1]

    def thoughts_and_answer(self, ids: Sequence[int]) -> tuple[str, str]:
        """What a model thought before its answer ("" where it thought nothing), and the words of the answer."""
        thoughts, answer = self.thought_ids.split(ids)
        if thoughts:
            opened, _ = split_thoughts(self._text(thoughts, skip_special_tokens=False), self._marks.thoughts)
            return opened, self._text(answer)
        return split_thoughts(self._text(answer), self._marks.thoughts)

    def plain_text(self, ids: Sequence[int]) -> str:
        """All words in `ids`, of whichever party, without special tokens and the white space around them."""
        return self._text(ids)

    def label_ids(self, prefill: str, label: str) -> tuple[int, ...]:
        """Ids of an option label as the continuation of `prompt_ids(…, prefill=prefill)`.

        Raises ConfigError where the tokenizer cannot say it: no ids, or ids that read back as something else.
        """
        ids = self._going_on(prefill, label) if prefill else self._continuation(label, "assistant")
        back = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        if not ids or _squeeze(back) != _squeeze(label):
            raise ConfigError(
                f"feedback.option_labels: this model's tokenizer cannot say {label!r} (it reads back as {back!r}); "
                "choose another label"
            )
        return ids

    def option_ids(self, prefill: str, labels: tuple[str, str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """`label_ids` of both options. Raises ConfigError where they cannot be told apart by their ids."""
        a, b = (self.label_ids(prefill, label) for label in labels)
        if a[: len(b)] == b[: len(a)]:
            raise ConfigError(
                f"feedback.option_labels={list(labels)}: one is the beginning of the other in this model's tokens"
            )
        return a, b

    def _messages(self, turns: Sequence[Turn]) -> list[Message]:
        """Chat messages; neighbours of the same side become one, because many templates insist on taking turns."""
        assert self._template is not None
        messages: list[Message] = []
        for turn in turns:
            text = self._marks.harmless(turn.text)
            if turn.role == "system" and (self._template.later_system if messages else self._template.system):
                role = "system"
            elif turn.role in _SPOKEN_BY_MODEL:
                role = "assistant"
            else:
                role = "user"
                text = text if turn.role in ("human", "system") else self.labels.of(turn.role) + text
            if messages and messages[-1]["role"] == role:
                messages[-1]["content"] += "\n\n" + text
            else:
                messages.append({"role": role, "content": text})
        return messages

    def _plain(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        """Labelled turns; the last one is open: its label's closing space belongs to what comes next."""
        text = "".join(f"\n\n{self.labels.of(turn.role)}{self._marks.harmless(turn.text)}" for turn in turns[:-1])
        return self._opened(text + f"\n\n{self.labels.of(turns[-1].role).rstrip()}")

    def _opened(self, text: str) -> tuple[int, ...]:
        """Ids of a text that begins a sequence."""
        return (*self._front, *self._tokens(text))

    def _continuation(self, text: str, role: Speaker) -> tuple[int, ...]:
        """Ids of `text` as the beginning of an opened answer, with the space that comes before it."""
        text = self._marks.harmless(text)
        if self._template is None:
            label = self.labels.of(role)
            return self._going_on(f"\n\n{label.rstrip()}", label[len(label.rstrip()) :] + text)
        return self._going_on(self._template.before_answer, self._template.gap + text)

    def _going_on(self, before: str, text: str) -> tuple[int, ...]:
        """Ids of `text` behind `before`. Tokenised alone it may get a space of its own in front (SentencePiece)."""
        first, both = self._tokens(before), self._tokens(before + text)
        rest = both[len(first) :] if both[: len(first)] == first else ()
        return rest or self._tokens(text)

    def _tokens(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _text(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        # Tidying would take spaces away that are in the text ("a , b").
        how = {"skip_special_tokens": skip_special_tokens, "clean_up_tokenization_spaces": False}
        last = next((n for n in range(len(ids), 0, -1) if ids[n - 1] not in self.stop_ids), 0)
        return str(self.tokenizer.decode(list(ids[:last]), **how)).strip()

    def _put_in_front(self) -> tuple[int, ...]:
        """What the tokenizer itself puts in front of a text, such as a token that begins one."""
        bare, whole = self._tokens(_PROBE), tuple(self.tokenizer(_PROBE)["input_ids"])
        found = (n for n in range(len(whole) - len(bare) + 1) if whole[n : n + len(bare)] == bare)
        return whole[: next(found, 0)]

    def _end_of_answer(self, ends: Sequence[int]) -> int:
        """The token that ends the assistant's turn in the template: behind the last answer, or behind an earlier one
        where the model's files say that it ends a turn (GLM: the one that opens a human's). Else, and in plain form,
        eos."""
        if self._template and (end := self._marks.first(self._template.after_answer)) is not None:
            return end
        earlier = self._marks.first(self._template.after_earlier_answer) if self._template else None
        if earlier is not None and earlier in ends:
            return earlier
        if self.tokenizer.eos_token_id is None:
            raise ConfigError("this model's tokenizer has no end-of-text token, so that no answer could end")
        return int(self.tokenizer.eos_token_id)

    def _padding(self) -> int:
        """Any id that does not end an answer: padding is told by lengths, but an id that says "end" invites
        mistakes."""
        t = self.tokenizer
        choices = (t.pad_token_id, t.unk_token_id, t.bos_token_id, *range(len(self.stop_ids) + 1))
        return next(int(i) for i in choices if i is not None and i not in self.stop_ids)


def _different(ids: Sequence[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(ids))


def _squeeze(text: str) -> str:
    return "".join(text.split())


def _same(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids both begin with."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
