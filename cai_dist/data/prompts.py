"""Red-team and helpful prompts from data sets, with the held-out part set aside."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from cai_dist.config.data import PromptSource
from cai_dist.constitution.draws import draw
from cai_dist.data.dialogues import SkipRecord, conversation_id
from cai_dist.data.layouts import AskedPrompt, LayoutReader
from cai_dist.data.reading import ReadCounts, ReadReport, WithReport
from cai_dist.data.sources import read_records, shown
from cai_dist.errors import DataError
from cai_dist.types import Prompt, PromptKind

_RANGE = 1 << 62
TOO_LONG = "more than max_turns turns"


@dataclass(frozen=True, slots=True)
class PromptSet(WithReport):
    """The prompts of one data set, and what was left out on the way."""

    prompts: tuple[Prompt, ...]
    """Training prompts, then held-out prompts, each in drawn order."""
    report: ReadReport

    @property
    def skipped(self) -> int:
        """Records that hold no prompt: no human turn to answer, or an empty turn."""
        return self.report.left_out - self.too_long

    @property
    def too_long(self) -> int:
        """Records all of whose prompts have more than `max_turns` turns."""
        return self.report.skipped.get(TOO_LONG, 0)


def load_prompt_set(source: PromptSource, kind: PromptKind, seed: int) -> PromptSet:
    """Read `source.source`, set `source.heldout` prompts aside, keep `source.limit` of the others.

    A conversation gives a training prompt for each of its human turns (with `source.turns` = `last`, for the last one
    alone); held out are last ones, so that a measurement counts a conversation once. Which prompts are held out depends
    on the seed and the content alone, neither on the limit nor on the order in the file. Conversations with the same
    opening are never split between training and held-out: data sets hold the same conversation at several lengths, and
    each human turn's prompt begins as the last one's does. Raises DataError, naming file and line, for malformed
    records, and where prompts run short.
    """
    setting = f"data.{kind}"
    layouts, reading = LayoutReader(setting), ReadCounts(shown(source.source))
    found: dict[str, Prompt] = {}
    last: set[str] = set()
    for record in read_records(source.source):
        reading.records += 1
        try:
            prompts = _prompts(layouts.prompt(record), source, kind)
        except SkipRecord as reason:
            reading.skip(str(reason), record.place)
            continue
        last.add(prompts[-1].id)
        if all(prompt.id in found for prompt in prompts):
            reading.duplicates += 1
        for prompt in prompts:
            found.setdefault(prompt.id, prompt)
    train, heldout = _split(list(found.values()), last, source.heldout, seed)
    report = reading.report()
    if len(heldout) < source.heldout or not train or len(train) < (source.limit or 1):
        raise DataError(_too_few(source, setting, len(found), report))
    return PromptSet((*train[: source.limit], *(replace(p, split="heldout") for p in heldout)), report)


def _prompts(asked: AskedPrompt, source: PromptSource, kind: PromptKind) -> list[Prompt]:
    """The prompts of a record, the longest last. Raises SkipRecord where all have too many turns."""
    turns = tuple(asked.turns)
    ends = [len(turns)]
    if asked.conversation:
        ends = [i for i, turn in enumerate(turns, 1) if turn.role == "human"]
    if source.turns == "last" or not asked.conversation:
        ends = ends[-1:]
    kept = [end for end in ends if source.max_turns is None or end <= source.max_turns]
    if not kept:
        raise SkipRecord(TOO_LONG)
    return [Prompt(conversation_id(turns[:end], kind), turns[:end], kind) for end in kept]


def _too_few(source: PromptSource, setting: str, found: int, report: ReadReport) -> str:
    wanted = f"{source.heldout} held-out and {source.limit or 'at least 1'} training prompts"
    too_long = report.skipped.get(TOO_LONG, 0)
    return (
        f"{report.source}: {found} different prompts are too few for {wanted} (conversations with the same opening "
        f"stay together); of {report.records} records "
        + (f"{report.why()}; " if report.left_out else "none was skipped; ")
        + (f"lower {setting}.heldout or {setting}.limit" if found else "give records that ask something")
        + (f", or raise {setting}.max_turns, which leaves out {too_long}" if too_long else "")
    )


def _split(
    prompts: Sequence[Prompt], last: Collection[str], heldout: int, seed: int
) -> tuple[list[Prompt], list[Prompt]]:
    """(train, held-out) in drawn order; held out are those whose id is in `last`. A group of one opening goes whole to
    one side; what is over is dropped."""
    ordered = sorted(prompts, key=lambda p: (draw(seed, "prompt order", p.id, n=_RANGE), p.id))
    groups: dict[str, list[Prompt]] = {}
    for prompt in ordered:
        groups.setdefault(opening(prompt), []).append(prompt)
    aside: list[Prompt] = []
    taken: set[str] = set()
    for group in _by_draw(groups, seed):
        if len(aside) >= heldout:
            break
        aside += [prompt for prompt in groups[group] if prompt.id in last]
        taken.add(group)
    train = [prompt for prompt in ordered if opening(prompt) not in taken]
    return train, aside[:heldout]


def _by_draw(openings: dict[str, list[Prompt]], seed: int) -> Iterator[str]:
    yield from sorted(openings, key=lambda name: (draw(seed, "held out", name, n=_RANGE), name))


def opening(prompt: Prompt) -> str:
    """Hash of the first human turn: what the lengths of one conversation have in common."""
    first = next(turn.text for turn in prompt.turns if turn.role == "human")
    return hashlib.sha256(first.encode()).hexdigest()
