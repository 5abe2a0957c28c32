"""Between conversations in words and token ids, in the one way that a given model expects.

The prompt is tokenised first and alone, the answer is tokenised alone and put behind it. So the prompt's ids are the
same whether the model is to continue it, to be trained on an answer to it, or to be scored on one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from jinja2.exceptions import TemplateError

from cai_dist.constitution.schema import Labels
from cai_dist.errors import ConfigError
from cai_dist.types import Role, TokenSequence, Turn

_SPOKEN_BY_MODEL = ("assistant", "critique", "revision")
_PROBE = "qxz"
"""A made-up answer: what follows it in a rendered chat is how the template ends a turn."""


class ChatFormat:
    """Turns -> ids and ids -> text for one tokenizer.

    `template`: the tokenizer's own chat template. Answers, critiques and revisions are assistant messages; requests for
    them are user messages that open with their label. `plain`: "\\n\\nHuman: … \\n\\nAssistant:" with a label before
    every turn. Text that spells a special token is broken up, so that nobody can end a turn or open one from inside it.

    Raises ConfigError where `mode` is `template` and the tokenizer has none, or where no token can end an answer.
    """

    def __init__(self, tokenizer: Any, mode: Literal["template", "plain"] = "template", labels: Labels | None = None):
        if mode == "template" and not getattr(tokenizer, "chat_template", None):
            raise ConfigError(
                "models.chat=template, but this model's tokenizer has no chat template; set models.chat=plain"
            )
        self.tokenizer = tokenizer
        self.mode = mode
        self.labels = labels or Labels()
        specials = sorted((t for t in tokenizer.all_special_tokens if len(t) > 1), key=len, reverse=True)
        self._specials = re.compile("|".join(re.escape(t) for t in specials)) if specials else None
        self.eos_id = self._end_of_answer()
        own = tokenizer.eos_token_id
        self.stop_ids: tuple[int, ...] = (self.eos_id,) if own in (None, self.eos_id) else (self.eos_id, int(own))
        self.pad_id = self._padding()

    def prompt_ids(self, turns: Sequence[Turn], answer_role: Role = "assistant", prefill: str = "") -> tuple[int, ...]:
        """Ids of the conversation with the answer of `answer_role` opened, and `prefill` as its first words.

        With `human` it is the human's turn that is opened, for a model that is to write prompts.
        """
        if self.mode == "template" and answer_role == "human":
            ids = self._tokens(self._around_human(turns)[0].rstrip(" "))
        elif self.mode == "template":
            ids = self._templated(turns, add_generation_prompt=True)
        else:
            ids = self._plain([*turns, Turn(answer_role, "")])
        return (*ids, *self._continuation(prefill, answer_role)) if prefill else ids

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Ids of bare text, of no conversation, for a model that is to continue it."""
        return self._opened(self._harmless(text))

    def example(self, turns: Sequence[Turn], response: str, answer_role: Role = "assistant") -> TokenSequence:
        """The conversation with its answer and the end token; weight 1 on answer and end token, 0 on the prompt.

        The ids start with exactly `prompt_ids(turns, answer_role)`.
        """
        prompt = self.prompt_ids(turns, answer_role)
        answer = (*self._continuation(response, answer_role), self.eos_id)
        return TokenSequence((*prompt, *answer), (0.0,) * len(prompt) + (1.0,) * len(answer))

    def human_stop_ids(self) -> tuple[int, ...]:
        """The tokens that end a human's turn: what the template has after one, and end of text. In plain form no
        token does: the turn ends where the text goes on with another label."""
        own = self.tokenizer.eos_token_id
        ends: tuple[int, ...] = () if own is None else (int(own),)
        if self.mode == "template" and (after := self._first_special(self._around_human(())[1])) is not None:
            ends = (after, *(i for i in ends if i != after))
        return ends

    def human_end(self) -> str:
        """The words that end a human's turn where the template has some before, or in place of, a special token (such
        as "[/INST]"); "" where no words do. What a model writes as a human goes up to them."""
        if self.mode == "plain":
            return ""
        after = self._around_human(())[1]
        found = self._specials.search(after) if self._specials else None
        return (after[: found.start()] if found else after).strip()

    def response_text(self, ids: Sequence[int]) -> str:
        """The words of an answer: special tokens and the white space around it are dropped."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def label_ids(self, prefill: str, label: str) -> tuple[int, ...]:
        """Ids of an option label as the continuation of `prompt_ids(…, prefill=prefill)`.

        Raises ConfigError where the tokenizer cannot say it: no ids, or ids that read back as something else.
        """
        ids = self._tokens(label) if prefill or self.mode == "template" else self._continuation(label, "assistant")
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

    def _templated(self, turns: Sequence[Turn], add_generation_prompt: bool) -> tuple[int, ...]:
        return tuple(self._render(turns, tokenize=True, add_generation_prompt=add_generation_prompt, return_dict=False))

    def _around_human(self, turns: Sequence[Turn]) -> tuple[str, str]:
        """What the template has before and after the words of a human turn that follows `turns`."""
        shown = str(self._render((*turns, Turn("human", _PROBE)), tokenize=False, add_generation_prompt=True))
        before, _, after = shown.rpartition(_PROBE)
        return before, after

    def _render(self, turns: Sequence[Turn], **how: bool) -> Any:
        """The conversation in the tokenizer's template. Raises ConfigError where that refuses it."""
        try:
            return self.tokenizer.apply_chat_template(self._messages(turns), **how)
        except TemplateError as error:  # a template may refuse, for example, system messages
            roles = ", ".join(dict.fromkeys(m["role"] for m in self._messages(turns)))
            raise ConfigError(
                f"models.chat=template: this model's chat template refuses a conversation with {roles}: "
                f"{' '.join(str(error).split())}; set models.chat=plain"
            ) from error

    def _messages(self, turns: Sequence[Turn]) -> list[dict[str, str]]:
        """Chat messages; neighbours of the same side become one, because many templates insist on taking turns."""
        messages: list[dict[str, str]] = []
        for turn in turns:
            text = self._harmless(turn.text)
            if turn.role == "system":
                role = "system"
            elif turn.role in _SPOKEN_BY_MODEL:
                role = "assistant"
            else:
                role = "user"
                text = text if turn.role == "human" else self.labels.of(turn.role) + text
            if messages and messages[-1]["role"] == role:
                messages[-1]["content"] += "\n\n" + text
            else:
                messages.append({"role": role, "content": text})
        return messages

    def _plain(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        """Labelled turns; the last one is open: its label's closing space belongs to what comes next."""
        text = "".join(f"\n\n{self.labels.of(turn.role)}{self._harmless(turn.text)}" for turn in turns[:-1])
        return self._opened(text + f"\n\n{self.labels.of(turns[-1].role).rstrip()}")

    def _opened(self, text: str) -> tuple[int, ...]:
        """Ids of a text that begins a sequence."""
        first = self.tokenizer.bos_token_id if getattr(self.tokenizer, "add_bos_token", False) else None
        return (*(() if first is None else (int(first),)), *self._tokens(text))

    def _continuation(self, text: str, role: Role) -> tuple[int, ...]:
        """Ids of `text` as the beginning of an opened answer; in plain form it brings the space after the label."""
        label = self.labels.of(role)
        gap = "" if self.mode == "template" else label[len(label.rstrip()) :]
        return self._tokens(gap + self._harmless(text))

    def _tokens(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _harmless(self, text: str) -> str:
        """`text` with a space inside anything that spells a special token."""
        if self._specials is None:
            return text
        return self._specials.sub(lambda match: f"{match.group()[0]} {match.group()[1:]}", text)

    def _end_of_answer(self) -> int:
        """The token that ends the assistant's turn in the template; in plain form, and where it has none, eos."""
        if self.mode == "template":
            turns = [Turn("human", _PROBE), Turn("assistant", _PROBE)]
            messages = self._messages(turns)
            shown = str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False))
            if (end := self._first_special(shown[shown.rindex(_PROBE) + len(_PROBE) :])) is not None:
                return end
        if self.tokenizer.eos_token_id is None:
            raise ConfigError("this model's tokenizer has no end-of-text token, so that no answer could end")
        return int(self.tokenizer.eos_token_id)

    def _first_special(self, text: str) -> int | None:
        # A token may be special (and vanish when text is decoded) without being among the tokenizer's named ones.
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).items()
        special = {*self.tokenizer.all_special_ids, *(i for i, token in added if token.special)}
        return next((int(token) for token in self._tokens(text) if token in special), None)

    def _padding(self) -> int:
        """Any id that does not end an answer: padding is told by lengths, but an id that says "end" invites
        mistakes."""
        t = self.tokenizer
        choices = (t.pad_token_id, t.unk_token_id, t.bos_token_id, 0, 1, 2)
        return next(int(i) for i in choices if i is not None and i not in self.stop_ids)


def _squeeze(text: str) -> str:
    return "".join(text.split())
