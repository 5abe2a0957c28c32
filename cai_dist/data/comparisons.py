"""Human comparisons from files: two answers to one prompt, and which of them a person liked better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cai_dist.config.data import ComparisonSource
from cai_dist.constitution.draws import draw
from cai_dist.data.dialogues import conversation_id, pair_dialogues, prompt_turns, safe_text, waits_for_answer
from cai_dist.data.prompts import opening
from cai_dist.data.records import Record, read_records
from cai_dist.errors import DataError
from cai_dist.types import Comparison, Prompt, Turn

_RANGE = 1 << 62


@dataclass(frozen=True, slots=True)
class ComparisonSet:
    """The comparisons of one file, and what was left out on the way."""

    comparisons: tuple[Comparison, ...]
    """Those to learn from, then those set aside (`prompt.split` is `heldout`), each in drawn order."""
    records: int
    duplicates: int
    skipped: int
    """Records without two different answers to one prompt."""


def load_comparison_set(source: ComparisonSource, seed: int) -> ComparisonSet:
    """Read `source.source` in the hh-rlhf layout (`chosen`, `rejected` dialogues) or the plain one (`prompt`, `chosen`,
    `rejected`), in drawn order: the first `source.limit` of them to learn from, and up to `source.heldout` others (at
    most a tenth of the file where there is no limit) set aside. Conversations with the same opening are never on both
    sides.

    Which answer is called A is drawn by (seed, content), so that position tells nothing; `p_a` is 1.0 where A was
    chosen and 0.0 where B was. Where dialogues differ before their last turn, the prompt is what they have in common
    and the answers are the next turns. Raises DataError, naming file and line, for malformed records, and where there
    are none.
    """
    path = Path(source.source).expanduser()
    found: dict[tuple[str, str, str], Comparison] = {}
    records = skipped = 0
    for record in read_records(path):
        records += 1
        turns, chosen, rejected = _sides(record)
        if not waits_for_answer(turns) or not chosen or not rejected or chosen == rejected:
            skipped += 1
            continue
        prompt = Prompt(conversation_id(turns, "helpful"), tuple(turns), "helpful")
        found.setdefault((prompt.id, chosen, rejected), _comparison(prompt, chosen, rejected, seed))
    if len(found) < (source.limit or 1):
        wanted = source.limit or "at least 1"
        raise DataError(
            f"{path}: {len(found)} usable comparisons, {wanted} wanted; lower data.helpful_comparisons.limit or give "
            "records with chosen and rejected"
        )
    order = sorted(found, key=lambda key: (draw(seed, "comparison order", *key, n=_RANGE), key))
    kept = _split([found[key] for key in order], source)
    return ComparisonSet(tuple(kept), records, records - skipped - len(found), skipped)


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


def _sides(record: Record) -> tuple[list[Turn], str, str]:
    """(prompt, chosen answer, rejected answer); empty texts where there is no answer."""
    if "prompt" in record.data:
        turns = prompt_turns(record)
        return turns, safe_text(record.text("chosen")), safe_text(record.text("rejected"))
    turns, chosen, rejected = pair_dialogues(record)
    return turns, _first_answer(chosen), _first_answer(rejected)


def _first_answer(rest: list[Turn]) -> str:
    return rest[0].text if rest and rest[0].role == "assistant" else ""


def _comparison(prompt: Prompt, chosen: str, rejected: str, seed: int) -> Comparison:
    if draw(seed, "chosen is B", prompt.id, chosen, rejected, n=2):
        return Comparison(prompt, rejected, chosen, 0.0, "human")
    return Comparison(prompt, chosen, rejected, 1.0, "human")
