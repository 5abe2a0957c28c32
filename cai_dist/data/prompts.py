"""Red-team and helpful prompts from files, with the held-out part set aside."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cai_dist.config.data import PromptSource
from cai_dist.constitution.draws import draw
from cai_dist.data.dialogues import conversation_id, pair_dialogues, prompt_turns, safe_text, waits_for_answer
from cai_dist.data.records import Record, read_records
from cai_dist.errors import DataError
from cai_dist.types import Prompt, PromptKind, Turn

_RANGE = 1 << 62


@dataclass(frozen=True, slots=True)
class PromptSet:
    """The prompts of one file, and what was left out on the way."""

    prompts: tuple[Prompt, ...]
    """Training prompts, then held-out prompts, each in drawn order."""
    records: int
    duplicates: int
    """Records whose prompt had been seen before."""
    skipped: int
    """Records that hold no prompt: no human turn to answer, or an empty turn."""
    too_long: int
    """Records whose conversation has more than `max_turns` turns."""


def load_prompt_set(source: PromptSource, kind: PromptKind, seed: int) -> PromptSet:
    """Read `source.source`, set `source.heldout` prompts aside, keep `source.limit` of the others.

    Which prompts are held out depends on the seed and the content alone, neither on the limit nor on the order in the
    file. Conversations with the same opening are never split between training and held-out: data sets hold the same
    conversation at several lengths. Raises DataError, naming file and line, for malformed records, and where prompts
    run short.
    """
    path = Path(source.source).expanduser()
    found: dict[str, Prompt] = {}
    records = skipped = too_long = 0
    for record in read_records(path):
        records += 1
        turns = _turns(record)
        if not waits_for_answer(turns):
            skipped += 1
            continue
        if source.max_turns is not None and len(turns) > source.max_turns:
            too_long += 1
            continue
        prompt = Prompt(conversation_id(turns, kind), tuple(turns), kind)
        found.setdefault(prompt.id, prompt)
    train, heldout = _split(list(found.values()), source.heldout, seed)
    if len(heldout) < source.heldout or not train or len(train) < (source.limit or 1):
        wanted = f"{source.heldout} held-out and {source.limit or 'at least 1'} training prompts"
        raise DataError(
            f"{path}: {len(found)} different prompts are too few for {wanted} (conversations with the same opening "
            f"stay together); lower data.{kind}.heldout or data.{kind}.limit"
            + (f", or raise data.{kind}.max_turns, which leaves out {too_long}" if too_long else "")
        )
    kept = (*train[: source.limit], *(replace(p, split="heldout") for p in heldout))
    return PromptSet(kept, records, records - skipped - too_long - len(found), skipped, too_long)


def _turns(record: Record) -> Sequence[Turn]:
    """The prompt of a record in any known layout."""
    if "prompt" in record.data:
        return prompt_turns(record)
    if "chosen" in record.data:
        return pair_dialogues(record)[0]
    if "instruction" in record.data:
        return _instruction(record)
    raise DataError(f"{record.place}: none of the keys prompt, chosen, instruction; the known layouts have one of them")


def _instruction(record: Record) -> list[Turn]:
    """A self-instruct record: the instruction and, where there is one, its first input."""
    text = safe_text(record.text("instruction"))
    instances = record.data.get("instances") or []
    first = instances[0] if isinstance(instances, list) and instances else {}
    if not isinstance(first, dict) or not isinstance(first.get("input", ""), str):
        raise DataError(f"{record.place}: 'instances' must be a list of objects with an input text")
    given = safe_text(first.get("input", ""))
    return [Turn("human", f"{text}\n\n{given}" if text and given else text)]


def _split(prompts: Sequence[Prompt], heldout: int, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """(train, held-out) in drawn order. A group of one opening goes whole to one side; what is over is dropped."""
    ordered = sorted(prompts, key=lambda p: (draw(seed, "prompt order", p.id, n=_RANGE), p.id))
    groups: dict[str, list[Prompt]] = {}
    for prompt in ordered:
        groups.setdefault(opening(prompt), []).append(prompt)
    aside: list[Prompt] = []
    taken: set[str] = set()
    for group in _by_draw(groups, seed):
        if len(aside) >= heldout:
            break
        aside += groups[group]
        taken.add(group)
    train = [prompt for prompt in ordered if opening(prompt) not in taken]
    return train, aside[:heldout]


def _by_draw(openings: dict[str, list[Prompt]], seed: int) -> Iterator[str]:
    yield from sorted(openings, key=lambda name: (draw(seed, "held out", name, n=_RANGE), name))


def opening(prompt: Prompt) -> str:
    """Hash of the first human turn: what the lengths of one conversation have in common."""
    first = next(turn.text for turn in prompt.turns if turn.role == "human")
    return hashlib.sha256(first.encode()).hexdigest()
