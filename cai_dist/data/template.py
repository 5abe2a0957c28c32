"""A tokenizer's chat template as text: what it writes around the words of a conversation, found by trying it.

Templates are programs that come with models: they may refuse, drop what they are given, ask for the date, and put
something between the place where generation begins and an answer. All of that is found out when this is made.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

from cai_dist.data.thoughts import closes, left_open
from cai_dist.errors import ConfigError

Message = dict[str, str]
Arguments = Mapping[str, bool | int | float | str]
_ASKED, _ANSWERED, _AGAIN, _RULES, _MORE_RULES = "qxzh", "qxza", "qxzk", "qxzs", "qxzt"
"""Made-up words of a human, an answer, a second human turn, a system turn and a later one."""
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


class ChatTemplate:
    """Conversations as text in the way of one tokenizer's template; every failure is one ConfigError line.

    `arguments` (`models.chat_arguments`) are passed to it, such as enable_thinking=false. `day`: what it is told when
    it asks for the date; by default today's, in UTC.

    Raises ConfigError where there is no template, where it fails on a human's turn and an answer, where it leaves their
    words out, and where it has no place for an answer but inside thoughts.
    """

    def __init__(self, tokenizer: Any, arguments: Arguments | None = None, day: date | None = None) -> None:
        self._tokenizer, self._arguments = tokenizer, dict(arguments or {})
        # Where the model lies on this machine is no part of what is wrong with it.
        self._name = os.path.basename(str(getattr(tokenizer, "name_or_path", "") or "")) or "this model"
        self.source = self._source()
        self._arguments |= _dated(self.source, self._arguments, day or datetime.now(UTC).date())
        opened = self.render([_user(_ASKED)], open_answer=True)
        whole = self.render([_user(_ASKED), _assistant(_ANSWERED)])
        again = self.render([_user(_ASKED), _assistant(_ANSWERED), _user(_AGAIN)], open_answer=True)
        self._require([_ASKED], opened)
        self._require([_ASKED, _ANSWERED], whole)
        self._require([_ASKED, _ANSWERED, _AGAIN], again)
        self._dropped, self.opening, self.gap = self._place_of_answer(opened, whole, _ASKED)
        self.before_answer = self._after(self.prompt([_user(_ASKED)]), _ASKED)
        """What the template has between the words of a human and those of an answer, `gap` apart."""
        self.after_answer = self._after(whole, _ANSWERED)
        """What it has behind an answer that is the last turn."""
        self.after_earlier_answer = again[again.rindex(_ANSWERED) + len(_ANSWERED) : again.rindex(_AGAIN)]
        """What it has behind one that a human's turn follows."""
        if left_open(self.before_answer):
            raise self._refusal(
                "puts answers inside thoughts that it has opened and not closed",
                "set models.chat_arguments so that it closes them (such as enable_thinking: false)",
            )
        later = [_user(_ASKED), _assistant(_ANSWERED), _user(_AGAIN)]
        if not self.prompt(later).endswith(self.before_answer) or self._place_of_answer(
            again, self.render([*later, _assistant(_ANSWERED)]), _AGAIN
        ) != (self._dropped, self.opening, self.gap):
            raise self._refusal("opens a later answer in another way than the first one")
        self.system = self._keeps([_system(_RULES), *later], [_RULES, _ASKED, _ANSWERED, _AGAIN])
        """Whether a system message that comes first keeps its words."""
        mixed = [_system(_RULES), *later[:2], _system(_MORE_RULES), later[2]]
        self.later_system = self.system and self._keeps(mixed, [_RULES, _ASKED, _ANSWERED, _MORE_RULES, _AGAIN])
        """Whether one further on does, in its place."""
        shown = [opened, whole, again, self.prompt([_user(_ASKED)])]
        shown += [self.render([_system(_RULES), _user(_ASKED)])] if self.system else []
        words = "|".join((_ASKED, _ANSWERED, _AGAIN, _RULES))
        self.frames = tuple(dict.fromkeys(part for text in shown for part in re.split(words, text) if part))
        """What it writes around words."""

    def prompt(self, messages: Sequence[Message]) -> str:
        """The conversation up to the place where the template puts an answer: behind what it writes before one (such
        as closed thoughts), not where it would have a model think. White space that begins an answer is not part of it
        (`gap`)."""
        shown = self.render(messages, open_answer=True)
        if not shown.endswith(self._dropped):
            raise self._refusal("opens the answer in another way in this conversation than in others")
        return shown[: len(shown) - len(self._dropped)] + self.opening

    def render(self, messages: Sequence[Message], open_answer: bool = False) -> str:
        """The conversation as the template has it. Raises ConfigError where it fails, whatever it raises itself."""
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=open_answer, **self._arguments
                )
            )
        except Exception as error:  # a program of somebody else's: from TemplateError to KeyError and RecursionError
            roles = ", ".join(dict.fromkeys(m["role"] for m in messages))
            line = " ".join(str(error).split())[:200]
            raise self._refusal(f"refuses a conversation with {roles}: {type(error).__name__}: {line}") from error

    def around(self, messages: Sequence[Message]) -> tuple[str, str]:
        """What the template has before and after the words of a human turn that follows `messages`."""
        before, found, after = self.render([*messages, _user(_ASKED)], open_answer=True).rpartition(_ASKED)
        if not found:
            raise self._refusal("leaves out the words of a human's turn")
        return before, after

    def _source(self) -> str:
        try:
            found = self._tokenizer.get_chat_template()
        except Exception as error:  # none, or several of which none is the default
            raise ConfigError(
                f"models.chat=template, but the tokenizer of {self._name} has no chat template; set models.chat=plain"
            ) from error
        return str(found)

    def _place_of_answer(self, opened: str, whole: str, asked: str) -> tuple[str, str, str]:
        """(what `opened` has at its end and an answer has not before it, what an answer has there instead, the spaces
        that it begins with)."""
        end = whole.rindex(_ANSWERED)
        start = whole.rindex(asked, 0, end) + len(asked)
        begun, before = self._after(opened, asked), whole[start:end]
        same = len(os.path.commonprefix([begun, before]))
        opening = before[same:].rstrip(" ")
        if same == len(before) and closes(begun[same:]):  # a closed thought that answers of old are shown without
            return "", "", ""
        return begun[same:], opening, before[same + len(opening) :]

    def _keeps(self, messages: Sequence[Message], words: Sequence[str]) -> bool:
        try:
            shown = self.render(messages, open_answer=True)
        except ConfigError:
            return False
        return _in_order(words, shown)

    def _require(self, words: Sequence[str], shown: str) -> None:
        if not _in_order(words, shown):
            whose = {_ASKED: "a human", _AGAIN: "a human", _ANSWERED: "the assistant"}
            lost = next((w for w in words if w not in shown), None)
            raise self._refusal(f"leaves out the words of {whose[lost]}" if lost else "changes the order of turns")

    def _after(self, shown: str, words: str) -> str:
        return shown.rpartition(words)[2]

    def _refusal(self, what: str, remedy: str = "set models.chat=plain") -> ConfigError:
        return ConfigError(f"models.chat=template: the chat template of {self._name} {what}; {remedy}")


def english(day: date, form: str) -> str:
    """`day` at midnight in the form of `strftime`, in English whatever the locale, in no time zone."""
    month, weekday = _MONTHS[day.month - 1], _DAYS[day.weekday()]
    own = {
        "B": month, "b": month[:3], "h": month[:3], "A": weekday, "a": weekday[:3], "p": "AM",
        "c": f"{weekday[:3]} {month[:3]} {day.day:2d} 00:00:00 {day.year}",
        "x": f"{day:%m/%d/%y}", "X": "00:00:00", "r": "12:00:00 AM", "s": "0", "Z": "UTC", "z": "+0000", "%": "%%",
    }  # fmt: skip
    at_midnight = datetime(day.year, day.month, day.day)
    return at_midnight.strftime(re.sub(r"%(.)", lambda m: own.get(m[1], m[0]), form))


def _dated(source: str, arguments: Arguments, day: date) -> dict[str, Any]:
    """What a template is told about the date: as its clock where it asks for one, as `date_string` where it has
    neither a clock nor a date of its own."""
    told: dict[str, Any] = {}
    if "strftime_now" in source:
        told["strftime_now"] = lambda form="%d %b %Y": english(day, form)
    has_own = re.search(r"set\s+date_string|date_string\s*(is|\||or\b)", source)
    if "date_string" in source and not has_own and "date_string" not in arguments:
        told["date_string"] = english(day, "%d %b %Y")
    return told


def _in_order(words: Sequence[str], shown: str) -> bool:
    places = [shown.find(word) for word in words]
    return -1 not in places and places == sorted(places)


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _system(text: str) -> Message:
    return {"role": "system", "content": text}
