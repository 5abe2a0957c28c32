"""What differs between two constitutions, entry by entry, for `cai-dist constitution diff`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from cai_dist.constitution.schema import ComparisonPrinciple, Constitution, CritiquePrinciple

_Principle = CritiquePrinciple | ComparisonPrinciple


@dataclass(frozen=True, slots=True)
class Difference:
    """One entry that is not the same; `before` is None where it is new, `after` where it is gone."""

    entry: str
    """Such as `comparison_principles harm: text`, or `templates.comparison`."""
    before: str | None
    after: str | None

    def lines(self) -> list[str]:
        """The entry, then `-` the text before and `+` the text after; each text on one line."""
        shown = [self.entry]
        for sign, text in (("-", self.before), ("+", self.after)):
            if text is not None:
                shown.append(f"  {sign} {' '.join(text.split()) or '(empty)'}")
        return shown


def diff(before: Constitution, after: Constitution) -> list[Difference]:
    """All differences; none exactly where the hashes are equal. Principles are matched by id, and by text where an id
    was given up for another."""
    found = [Difference(key, getattr(before, key), getattr(after, key)) for key in ("name", "version")]
    changed = [d for d in found if d.before != d.after]
    for kind in ("critique_principles", "comparison_principles"):
        changed += _principles(kind, getattr(before, kind), getattr(after, kind))
    changed += _templates(before, after)
    for kind in ("few_shot_critiques", "few_shot_comparisons", "few_shot_reasoning"):
        changed += _examples(kind, getattr(before, kind), getattr(after, kind))
    return changed


def _principles(kind: str, before: Sequence[_Principle], after: Sequence[_Principle]) -> Iterator[Difference]:
    old, new = {p.id: p for p in before}, {p.id: p for p in after}
    renamed = _renamed(old, new)
    for one, other in renamed.items():
        yield Difference(f"{kind}: another id, the same text", one, other)
    for name, principle in old.items():
        if name in new:
            yield from _fields(f"{kind} {name}", principle, new[name])
        elif name not in renamed:
            yield Difference(f"{kind} {name}: gone", _text(principle), None)
    for name, principle in new.items():
        if name not in old and name not in renamed.values():
            yield Difference(f"{kind} {name}: new", None, _text(principle))
    common = [renamed.get(name, name) for name in old if name in new or name in renamed]
    if common != (order := [name for name in new if name in common]):
        yield Difference(f"{kind}: another order", ", ".join(common), ", ".join(order))


def _renamed(old: dict[str, _Principle], new: dict[str, _Principle]) -> dict[str, str]:
    """Old id -> new id of the principles whose text stayed."""
    texts = {_text(p): name for name, p in new.items() if name not in old}
    return {name: texts[_text(p)] for name, p in old.items() if name not in new and _text(p) in texts}


def _fields(entry: str, before: Any, after: Any) -> Iterator[Difference]:
    for field in fields(before):
        one, other = getattr(before, field.name), getattr(after, field.name)
        if one != other:
            yield Difference(f"{entry}: {field.name}", one, other)


def _templates(before: Constitution, after: Constitution) -> Iterator[Difference]:
    one, other = before.templates, after.templates
    for key in ("comparison", "reasoning", "separator"):
        if (old := getattr(one, key)) != (new := getattr(other, key)):
            yield Difference(f"templates.{key}", repr(old), repr(new))
    for field in fields(one.labels):
        old, new = getattr(one.labels, field.name), getattr(other.labels, field.name)
        if old != new:
            yield Difference(f"templates.labels.{field.name}", repr(old), repr(new))


def _examples(kind: str, before: Sequence[Any], after: Sequence[Any]) -> Iterator[Difference]:
    """Worked examples have no ids: they are matched by content, and shown by their last text."""
    for i, example in enumerate(before):
        if example not in after:
            yield Difference(f"{kind}[{i}]: gone or changed", _example(example), None)
    for i, example in enumerate(after):
        if example not in before:
            yield Difference(f"{kind}[{i}]: new or changed", None, _example(example))
    kept, order = [e for e in before if e in after], [e for e in after if e in before]
    if kept != order:
        yield Difference(f"{kind}: another order or number", str(len(kept)), str(len(order)))


def _example(example: Any) -> str:
    if isinstance(example, tuple):
        return " / ".join(f"{turn.role}: {turn.text}" for turn in example)
    turns = " / ".join(f"{turn.role}: {turn.text}" for turn in example.turns)
    under = f"[{example.principle}] " if example.principle else ""
    return f"{under}{turns} / (A) {example.a} / (B) {example.b} / better: {example.answer}"


def _text(principle: _Principle) -> str:
    if isinstance(principle, ComparisonPrinciple):
        return principle.text
    return f"{principle.critique_request} -> {principle.revision_request}"
