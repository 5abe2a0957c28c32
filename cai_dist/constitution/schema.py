"""What a constitution is: principles, templates and worked examples, as frozen data with one hash.

Source: Bai et al. 2022 (arXiv 2212.08073), sections 3.1 and 4.1 and appendix C.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from os import PathLike, fspath
from typing import Any, Literal

from pydantic import ConfigDict

from cai_dist.constitution.substitute import slots
from cai_dist.errors import ConfigError
from cai_dist.types import Speaker, Turn

COMPARISON_SLOTS = ("conversation", "principle", "a", "b")
_ID = re.compile(r"[\w.-]+")
"""Ids stand in tables and in file names, several joined by "+"."""
_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, slots=True)
class CritiquePrinciple:
    """A pair of requests to the model about its own last answer."""

    __pydantic_config__ = _STRICT

    id: str
    critique_request: str
    revision_request: str


@dataclass(frozen=True, slots=True)
class ComparisonPrinciple:
    """One question to the feedback model about two answers."""

    __pydantic_config__ = _STRICT

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Labels:
    """The words that go before each party's text."""

    __pydantic_config__ = _STRICT

    human: str = "Human: "
    assistant: str = "Assistant: "
    critique_request: str = "Critique Request: "
    critique: str = "Critique: "
    revision_request: str = "Revision Request: "
    revision: str = "Revision: "

    def of(self, role: Speaker) -> str:
        """The label of a role; a system message has none."""
        return "" if role == "system" else str(getattr(self, role))


@dataclass(frozen=True, slots=True)
class Templates:
    """`comparison` has the slots {conversation}, {principle}, {a} and {b}, each once; `separator` stands between
    turns."""

    __pydantic_config__ = _STRICT

    comparison: str
    labels: Labels = Labels()
    separator: str = "\n\n"
    reasoning: str = ""
    """The question with the same slots where the feedback model is to think before it answers; empty: `comparison`."""


@dataclass(frozen=True, slots=True)
class FewShotComparison:
    """A worked comparison. An empty `principle` means: draw one each time that the example is used."""

    __pydantic_config__ = _STRICT

    turns: tuple[Turn, ...]
    a: str
    b: str
    answer: Literal["A", "B"]
    principle: str = ""


@dataclass(frozen=True, slots=True)
class Constitution:
    """Principles, templates and worked examples. `sha256` identifies the content and stands in every manifest.

    `load` reads one: `Constitution.load("default").comparison_principles[0].text`.
    """

    __pydantic_config__ = _STRICT

    name: str
    critique_principles: tuple[CritiquePrinciple, ...]
    comparison_principles: tuple[ComparisonPrinciple, ...]
    templates: Templates
    version: str = "1"
    few_shot_critiques: tuple[tuple[Turn, ...], ...] = ()
    few_shot_comparisons: tuple[FewShotComparison, ...] = ()
    few_shot_reasoning: tuple[tuple[Turn, ...], ...] = ()
    """Worked comparisons that think step by step: a human turn, where `{principle}` is the slot of a principle, and the
    assistant's reasoning with the answer (which may also stand in a human turn of its own at the end, as published)."""

    @classmethod
    def load(cls, source: str | PathLike[str]) -> Constitution:
        """The constitution named by `source`: `default` or `micro`, which come with the package, the path of a YAML
        file, or that of a folder with the JSON files published beside the paper.

            constitution = Constitution.load("default")
            constitution.critique_principles[0].critique_request

        Raises ConfigError where there is nothing at that path, DataError where the content is malformed.
        """
        from cai_dist.constitution.load import load_constitution

        return load_constitution(fspath(source))

    @property
    def sha256(self) -> str:
        """Hash of the content as canonical JSON (sorted keys, no white space): 64 hexadecimal digits."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def note(self, without: Collection[str] = ()) -> dict[str, Any]:
        """What artifacts say of the constitution that they were made under: `name`, `version`, `sha256`, and `without`,
        the ids of the principles that this run left out (the hash is that of what is left)."""
        return {"name": self.name, "version": self.version, "sha256": self.sha256, "without": sorted(set(without))}

    def without(self, ids: Collection[str]) -> Constitution:
        """This constitution without the principles of these ids, of either kind, and without the worked comparisons
        that are made under one of them: what does a principle do? No ids: the same hash.

        Raises ConfigError (setting `without_principles`) for an id that is none, with near ones, and where no
        principle of a kind would be left.
        """
        known = {p.id for p in self.critique_principles} | {p.id for p in self.comparison_principles}
        for unknown in sorted(set(ids) - known):
            near = difflib.get_close_matches(unknown, sorted(known), 3, 0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"ids here: {', '.join(sorted(known))}"
            raise ConfigError(f"without_principles={unknown}: the constitution {self.name} has no such id; {hint}")
        gone = {p.text for p in self.comparison_principles if p.id in ids}
        left = replace(
            self,
            critique_principles=tuple(p for p in self.critique_principles if p.id not in ids),
            comparison_principles=tuple(p for p in self.comparison_principles if p.id not in ids),
            few_shot_comparisons=tuple(e for e in self.few_shot_comparisons if e.principle not in gone),
        )
        for kind in ("critique_principles", "comparison_principles"):
            if not getattr(left, kind):
                raise ConfigError(
                    f"without_principles: leaves none of the {kind} of the constitution {self.name}; leave out fewer"
                )
        return left


def problem(constitution: Constitution) -> str | None:
    """What is wrong with a constitution whose types are right, as `entry: reason`; None where all is well."""
    return (
        _principles_problem(constitution)
        or _template_problem(constitution.templates)
        or _few_shot_problem(constitution)
    )


def _principles_problem(constitution: Constitution) -> str | None:
    for kind in ("critique_principles", "comparison_principles"):
        principles = getattr(constitution, kind)
        if not principles:
            return f"{kind}: at least one principle is needed"
        repeated = [i for i, n in Counter(p.id for p in principles).items() if n > 1]
        if repeated:
            return f"{kind}: the id {repeated[0]!r} stands there more than once"
        for i, principle in enumerate(principles):
            for field in fields(principle):
                if not getattr(principle, field.name).strip():
                    return f"{kind}[{i}].{field.name}: must not be empty"
            if not _ID.fullmatch(principle.id):
                return f"{kind}[{i}].id={principle.id[:80]!r}: letters, digits and the signs - _ . alone"
    return None


def _template_problem(templates: Templates) -> str | None:
    for key in ("comparison", "reasoning"):
        text = getattr(templates, key)
        if key == "reasoning" and not text:
            continue
        found = Counter(slots(text))
        for name in COMPARISON_SLOTS:
            if found.pop(name, 0) != 1:
                return f"templates.{key}: the slot {{{name}}} must stand there exactly once"
        if found:
            return f"templates.{key}: unknown slot {{{next(iter(found))}}}"
    return None


def _few_shot_problem(constitution: Constitution) -> str | None:
    for i, dialogue in enumerate(constitution.few_shot_critiques):
        roles = [turn.role for turn in dialogue]
        tail = ["assistant", "critique_request", "critique", "revision_request", "revision"]
        if roles[-5:] != tail or roles[-6:-5] != ["human"]:
            return f"few_shot_critiques[{i}]: must end with the turns human, {', '.join(tail)}"
    for i, example in enumerate(constitution.few_shot_comparisons):
        if not example.turns or example.turns[-1].role != "human":
            return f"few_shot_comparisons[{i}].turns: must end with a human turn"
        if not (example.a.strip() and example.b.strip()):
            return f"few_shot_comparisons[{i}]: both answers must have text"
    for i, dialogue in enumerate(constitution.few_shot_reasoning):
        if [turn.role for turn in dialogue] not in (["human", "assistant"], ["human", "assistant", "human"]):
            return f"few_shot_reasoning[{i}]: must have the turns human, assistant and no more but a closing human one"
    return None
