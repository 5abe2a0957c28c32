"""What a constitution is: principles, templates and worked examples, as frozen data with one hash.

Source: Bai et al. 2022 (arXiv 2212.08073), sections 3.1 and 4.1 and appendices C and E.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, fields
from typing import Literal

from pydantic import ConfigDict

from cai_dist.constitution.substitute import slots
from cai_dist.types import Role, Turn

COMPARISON_SLOTS = ("conversation", "principle", "a", "b")
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

    def of(self, role: Role) -> str:
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
    """The whole of it. `sha256` identifies the content and stands in every manifest."""

    __pydantic_config__ = _STRICT

    name: str
    critique_principles: tuple[CritiquePrinciple, ...]
    comparison_principles: tuple[ComparisonPrinciple, ...]
    templates: Templates
    version: str = "1"
    few_shot_critiques: tuple[tuple[Turn, ...], ...] = ()
    few_shot_comparisons: tuple[FewShotComparison, ...] = ()
    few_shot_reasoning: tuple[tuple[Turn, ...], ...] = ()
    """Worked comparisons that think step by step; `{principle}` is the principle's slot (published files only)."""

    @property
    def sha256(self) -> str:
        """Hash of the content as canonical JSON (sorted keys, no white space): 64 hexadecimal digits."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


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
    return None


def _template_problem(templates: Templates) -> str | None:
    found = Counter(slots(templates.comparison))
    for name in COMPARISON_SLOTS:
        if found.pop(name, 0) != 1:
            return f"templates.comparison: the slot {{{name}}} must stand there exactly once"
    if found:
        return f"templates.comparison: unknown slot {{{next(iter(found))}}}"
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
    return None
