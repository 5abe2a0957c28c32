"""What people of the micro-world have written: ranked answers, ratings of harm, multiple-choice questions."""

from __future__ import annotations

from statistics import fmean

import pytest

from cai_dist.types import Prompt, Turn
from cai_dist.world.choices import PER_KIND, choice_questions
from cai_dist.world.oracle import Judgement, judge
from cai_dist.world.ranked import ranked_questions
from cai_dist.world.ratings import rated_answers
from cai_dist.world.tables import World
from cai_dist.world.tokenizer import build_tokenizer

WORLD = World(3)


def judged(turns: tuple[Turn, ...], text: str) -> Judgement:
    return judge(WORLD, Prompt("p", turns, "red_team"), text)


def combination(turns: tuple[Turn, ...]) -> tuple[str, str]:
    words = turns[-1].text.split()
    return words[1], words[2]


def unknown_words(*texts: str) -> int:
    tokenizer = build_tokenizer()
    return sum(tokenizer(text)["input_ids"].count(tokenizer.unk_token_id) for text in texts)


def test_ranked_answers_differ_and_use_demonstration_combinations() -> None:
    questions = ranked_questions(WORLD, 500, seed=0)
    assert questions == ranked_questions(WORLD, 500, seed=0) != ranked_questions(WORLD, 500, seed=1)
    assert len({q.id for q in questions}) == 500
    assert {combination(q.turns) for q in questions} <= set(WORLD.combos["demonstration"])
    for q in questions:
        assert 2 <= len(q.answers) <= 4
        assert len({a.text for a in q.answers}) == len(q.answers)
        assert all(a.score >= -1 for a in q.answers)
        assert not unknown_words(*(a.text for a in q.answers))


def test_ranked_answers_reward_help_and_harmlessness_with_noise() -> None:
    """In pairs that differ in danger alone, in rudeness alone, or in help alone, the better answer has the higher score
    in most and not in all."""
    right: dict[str, list[bool]] = {"danger": [], "rude": [], "help": []}
    for q in ranked_questions(WORLD, 3000, seed=0):
        for x in q.answers:
            for y in q.answers:
                a, b = judged(q.turns, x.text), judged(q.turns, y.text)
                if x.score == y.score or a.hazardous != b.hazardous:
                    continue
                if b.danger and a.engaged and a.rude == b.rude:
                    right["danger"].append(x.score > y.score)
                elif b.rude and not a.rude and (a.danger, a.helpful, a.refuses) == (b.danger, b.helpful, b.refuses):
                    right["rude"].append(x.score > y.score)
                elif not a.hazardous and a.helpful and b.refuses and a.rude == b.rude:
                    right["help"].append(x.score > y.score)
    for found in right.values():
        assert len(found) > 100 and 0.8 < fmean(found) < 0.995


@pytest.mark.slow
def test_ratings_grow_with_harm_and_know_nothing_of_held_out_combinations() -> None:
    ratings = rated_answers(WORLD, 2000, seed=0)
    assert ratings == rated_answers(WORLD, 2000, seed=0) != rated_answers(WORLD, 2000, seed=1)
    by_harm: dict[tuple[bool, bool], list[float]] = {}
    for r in ratings:
        assert r.rating in (0, 1, 2, 3, 4) and r.prompt.kind == "red_team" and r.prompt.split == "train"
        assert combination(r.prompt.turns) not in WORLD.combos["heldout"]
        assert not unknown_words(r.response)
        found = judge(WORLD, r.prompt, r.response)
        assert found.hazardous or found.asks_mock
        by_harm.setdefault((found.danger, found.rude), []).append(r.rating)
    means = {harm: fmean(found) for harm, found in by_harm.items()}
    assert means[False, False] < 0.4 < 1 < means[False, True] < 2 < means[True, False] < 3 < means[True, True] <= 4
    assert all(len(set(found)) > 1 for found in by_harm.values())  # people disagree


def test_choices_have_one_right_option_on_held_out_combinations() -> None:
    questions = choice_questions(WORLD, seed=0)
    assert questions == choice_questions(WORLD, seed=0) != choice_questions(WORLD, seed=1)
    assert len({q.id for q in questions}) == len(questions) == 4 * PER_KIND
    for q in questions:
        assert combination(q.turns) in WORLD.combos["heldout"]
        assert len(q.options) == len(q.scores) == 2 and sorted(q.scores) == [0.0, 1.0] and len(set(q.options)) == 2
        assert not unknown_words(*q.options)
        best, worse = sorted((judged(q.turns, text) for text in q.options), key=lambda j: j.harmful)
        right = judged(q.turns, q.options[q.scores.index(1.0)])
        assert not right.harmful and (right.engaged if right.hazardous else right.helpful)
        if q.id.startswith("harmless"):
            assert worse.harmful and right == best
        else:
            assert not worse.harmful
    first = [q.scores[0] for q in questions]
    assert 0.35 < fmean(first) < 0.65


@pytest.mark.parametrize("kind", ["helpful", "honest", "harmless", "other"])
def test_every_kind_of_choice_asks_about_different_things(kind: str) -> None:
    questions = [q for q in choice_questions(WORLD, seed=0) if q.id.startswith(kind)]
    assert len({q.turns for q in questions}) > PER_KIND / 2
