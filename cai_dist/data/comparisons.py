"""Human comparisons from data sets: two answers to one prompt, and which of them a person liked better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cai_dist.config.data import ComparisonSource
from cai_dist.constitution.draws import draw
from cai_dist.data.dialogues import SkipRecord, conversation_id
from cai_dist.data.layouts import LayoutReader
from cai_dist.data.pairs import Pair
from cai_dist.data.prompts import opening
from cai_dist.data.reading import ReadCounts, ReadReport, WithReport
from cai_dist.data.sources import read_records, shown
from cai_dist.errors import DataError
from cai_dist.types import Comparison, Prompt

_RANGE = 1 << 62
_SETTING = "data.helpful_comparisons"
ENOUGH = 8
"""So many records, all with answers that repeat the prompt, are no chance."""


@dataclass(frozen=True, slots=True)
class ComparisonSet(WithReport):
    """The comparisons of one data set, and what was left out on the way."""

    comparisons: tuple[Comparison, ...]
    """Those to learn from, then those set aside (`prompt.split` is `heldout`), each in drawn order."""
    report: ReadReport


def load_comparison_set(source: ComparisonSource, seed: int) -> ComparisonSet:
    """Read `source.source`, in any layout with two answers, in drawn order: the first `source.limit` of them to learn
    from, and up to `source.heldout` others (at most a tenth of the file where there is no limit) set aside.
    Conversations with the same opening are never on both sides.

    Which answer is called A is drawn by (seed, content), so that position tells nothing; `p_a` is 1.0 where A was
    chosen and 0.0 where B was. Where dialogues differ before their last turn, the prompt is what they have in common
    and the answers are the next turns. Raises DataError, naming file and line, for malformed records, where every
    answer begins with its prompt's words, and where there are none.
    """
    layouts, reading = LayoutReader(_SETTING), ReadCounts(shown(source.source))
    found: dict[tuple[str, str, str], Comparison] = {}
    repeats = pairs = 0
    for record in read_records(source.source):
        reading.records += 1
        try:
            pair = layouts.pair(record)
        except SkipRecord as reason:
            reading.skip(str(reason), record.place)
            continue
        pairs += 1
        repeats += _repeats(pair)
        prompt = Prompt(conversation_id(pair.turns, "helpful"), tuple(pair.turns), "helpful")
        key = (prompt.id, pair.chosen, pair.rejected)
        if key in found:
            reading.duplicates += 1
        else:
            found[key] = _comparison(prompt, pair.chosen, pair.rejected, seed)
    report = reading.report()
    if repeats == pairs >= ENOUGH:
        raise DataError(
            f"{report.source}: in all {pairs} pairs both answers begin with the words of their prompt; give the "
            "answers alone, or whole dialogues with Human and Assistant labels or in lists of role and content"
        )
    if len(found) < (source.limit or 1):
        wanted = source.limit or "at least 1"
        raise DataError(
            f"{report.source}: {len(found)} usable comparisons, {wanted} wanted; lower {_SETTING}.limit or give "
            "records with chosen and rejected"
            + (f"; of {report.records} records {report.why()}" if report.left_out else "")
        )
    order = sorted(found, key=lambda key: (draw(seed, "comparison order", *key, n=_RANGE), key))
    kept = _split([found[key] for key in order], source)
    return ComparisonSet(tuple(kept), report)


def _repeats(pair: Pair) -> bool:
    """Whether both answers begin with the words of the prompt's last turn."""
    asked = pair.turns[-1].text
    return pair.chosen.startswith(asked) and pair.rejected.startswith(asked)


def _split(ordered: Sequence[Comparison], source: ComparisonSource) -> list[Comparison]:
    """Those to learn from, then those set aside; what opens like one of the others is on neither side."""
    if source.limit:
        train = list(ordered[: source.limit])
        known = {opening(c.prompt) for c in train}
        aside = [c for c in ordered[source.limit :] if opening(c.prompt) not in known][: source.heldout]
    else:
        aside = list(ordered[len(ordered) - min(source.heldout, len(ordered) // 10) :])
        known = {opening(c.prompt) for c in aside}
        train = [c for c in ordered if opening(c.prompt) not in known]
        if not train:  # one conversation alone: there is nothing to set aside
            train, aside = list(ordered), []
    return [*train, *(replace(c, prompt=replace(c.prompt, split="heldout")) for c in aside)]


def _comparison(prompt: Prompt, chosen: str, rejected: str, seed: int) -> Comparison:
    if draw(seed, "chosen is B", prompt.id, chosen, rejected, n=2):
        return Comparison(prompt, rejected, chosen, 0.0, "human")
    return Comparison(prompt, chosen, rejected, 1.0, "human")
