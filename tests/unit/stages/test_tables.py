"""What stages hand to each other, and what they choose from it."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from cai_dist.config.supervised import ReviseConfig, SftConfig
from cai_dist.data.held_out import without_held_out
from cai_dist.errors import DataError
from cai_dist.stages import sft
from cai_dist.stages.comparisons.pairs import mix
from cai_dist.stages.tables.records import (
    Labelled,
    Revision,
    read_comparisons,
    read_revisions,
    write_comparisons,
    write_revisions,
)
from cai_dist.stages.tables.transcripts import quote, write_revision_transcripts
from cai_dist.types import Comparison, Prompt, Turn

PROMPT = Prompt("p", (Turn("human", "a\n\nHuman: <b>"), Turn("assistant", "c"), Turn("human", "d")), "red_team")


def revision(number: int, failure: str = "") -> Revision:
    return Revision(PROMPT, number, f"principle-{number}", "why", f"answer {number}", failure)


def test_tables_give_back_what_was_written(tmp_path) -> None:
    revisions = [revision(0), revision(1, "empty")]
    write_revisions(tmp_path / "r.parquet", revisions)
    assert read_revisions(tmp_path / "r.parquet") == revisions
    pair = Labelled(Comparison(PROMPT, "x", "y", 0.25, "ai", "k"), 0.25, 0.5, 0.0)
    alone = Labelled(Comparison(PROMPT, "x", "y", 1.0, "human"), 1.0, math.nan, math.nan)
    write_comparisons(tmp_path / "c.parquet", [pair, alone])
    back = read_comparisons(tmp_path / "c.parquet")
    assert back[0] == pair
    assert back[1].comparison == alone.comparison
    assert math.isnan(back[1].p_second)


@pytest.mark.parametrize(("which", "rounds"), [("all", {1, 2, 4}), ("final", {4}), (2, {1, 2})])
def test_which_revisions_train(make_run, which, rounds) -> None:
    run = make_run(sft=SftConfig(revisions=which), revise=ReviseConfig(rounds=4))
    folder = run.folder("revise")
    write_revisions(folder / "revisions.parquet", [revision(k, "empty" if k == 3 else "") for k in range(5)])
    write_revisions(folder / "helpful.parquet", [revision(0)])
    sources = Counter(d.source for d in sft.demonstrations(run))
    # round 0 is the unrevised answer and never trains; round 3 did not parse
    assert sources == Counter({**{f"revision:{k}": 1 for k in rounds}, "helpful": 1})


def test_without_rounds_there_is_no_last_revision(make_run) -> None:
    run = make_run(sft=SftConfig(revisions="final"), revise=ReviseConfig(rounds=0))
    folder = run.folder("revise")
    write_revisions(folder / "revisions.parquet", [revision(0)])
    write_revisions(folder / "helpful.parquet", [revision(0)])
    assert [d.source for d in sft.demonstrations(run)] == ["helpful"]


def test_what_opens_like_a_held_out_prompt_trains_nothing() -> None:
    def prompt(name: str, kind: str, split: str, *texts: str) -> Prompt:
        roles = ("human", "assistant", "human")
        return Prompt(name, tuple(Turn(r, t) for r, t in zip(roles, texts, strict=False)), kind, split)  # type: ignore

    aside = prompt("aside", "red_team", "heldout", "how do I pick a lock ?")
    same = prompt("same", "helpful", "train", "how do I pick a lock ?")
    longer = prompt("longer", "helpful", "train", "how do I pick a lock ?", "why ?", "for fun")
    other = prompt("other", "helpful", "train", "how do I bake bread ?")
    pairs = [Comparison(p, "x", "y", 1.0, "human") for p in (same, longer, other)]
    prompts, comparisons = without_held_out([aside, same, longer, other], pairs)
    assert prompts == [aside, other]
    assert [c.prompt for c in comparisons] == [other]
    # a comparison that is set aside: neither kind of prompt may open so, in training
    measured = prompt("measured", "helpful", "heldout", "how do I mend a kettle ?")
    attack = prompt("attack", "red_team", "train", "how do I mend a kettle ?", "no", "so that it explodes")
    benign = prompt("benign", "helpful", "train", "how do I mend a kettle ?")
    pairs.append(Comparison(measured, "x", "y", 1.0, "human"))
    prompts, comparisons = without_held_out([aside, attack, benign, other], pairs)
    assert prompts == [aside, other]
    assert [c.prompt for c in comparisons] == [other, measured]


def test_the_mixture_has_the_asked_share_of_human_comparisons() -> None:
    ai = [Comparison(PROMPT, "x", "y", 0.5, "ai")] * 30
    human = [Comparison(PROMPT, "x", "y", 1.0, "human")] * 100
    mixed = mix(ai, human, 0.4, 0, "preference")
    # 20 of 50 are 40%
    assert Counter(c.source for c in mixed) == Counter(ai=30, human=20)
    assert Counter(c.source for c in mix(ai, human, 0.0, 0, "preference")) == Counter(ai=30)
    with pytest.raises(DataError, match="dpo.helpful_fraction"):
        mix(ai, human[:5], 0.5, 0, "dpo")


def test_model_text_cannot_leave_its_block(tmp_path) -> None:
    evil = "fine\n# a heading\n<script>alert(1)</script>\r\n```"
    assert all(line.startswith("    ") for line in quote(evil).split("\n"))
    write_revision_transcripts(tmp_path / "t.md", [Revision(PROMPT, 0, "", "", evil, "")])
    shown = (tmp_path / "t.md").read_text()
    assert "\n    <script>" in shown
    assert "\n<script>" not in shown
