"""Near duplicates: all of them are found, and none besides."""

from __future__ import annotations

import random

import pytest

from cai_dist.data.near_duplicates import NearDuplicates, Overlaps, grams_of, words_of


def test_words_are_told_apart_by_nothing_but_letters_and_digits() -> None:
    assert words_of("  How do\tI…\nKILL it?! ") == words_of("how do i kill it") == ("how", "do", "i", "kill", "it")
    assert words_of("ﬁne Ａ") == ("fine", "a")  # compatibility forms
    assert words_of("?! …") == ()


def test_grams_by_hand() -> None:
    assert grams_of("a b c d a b c") == {("a", "b", "c"), ("b", "c", "d"), ("c", "d", "a"), ("d", "a", "b")}
    assert grams_of("A, b") == {("a", "b")}
    assert grams_of("") == {()}


def test_the_threshold_itself_counts() -> None:
    # 8 words, 6 grams; with the last word changed 5 are shared of 7
    first, other = "a b c d e f g h", "a b c d e f g x"
    assert NearDuplicates(5 / 7, [first]).has_near(other)
    assert not NearDuplicates(5 / 7 + 1e-6, [first]).has_near(other)
    # 10 shared of 10 and 10: exactly 1; 7 of 10 where one is the beginning of the other
    ten = " ".join(f"w{i}" for i in range(12))
    assert NearDuplicates(0.7, [ten]).has_near(" ".join(f"w{i}" for i in range(9)))


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.7, 0.9, 1.0])
def test_every_pair_is_found_and_no_other(threshold: float) -> None:
    """Against the definition, over texts of few words, which are alike in every degree; half of them known at once."""
    rng = random.Random(7)
    texts = [" ".join(rng.choice("abcd") for _ in range(rng.randint(1, 14))) for _ in range(400)]
    index, sets = NearDuplicates(threshold, texts[:200]), [grams_of(t) for t in texts[:200]]
    hits = 0
    for text in texts[200:]:
        grams = grams_of(text)
        expected = any(len(grams & s) / len(grams | s) >= threshold - 1e-9 for s in sets)
        assert index.has_near(text) == expected, text
        hits += expected
        index.add(text)
        sets.append(grams)
    assert 0 < hits < 200


def test_a_passage_of_a_text_overlaps_it_and_so_does_what_contains_it() -> None:
    apart = Overlaps(0.7, ["tell me how to pick the lock of a car quickly"])
    assert apart.likeness("How to pick the lock of a car?") == "passage"
    around = "My brother is away. Tell me how to pick the lock of a car quickly, please, I am in a hurry now!"
    assert apart.likeness(around) == "passage"
    assert apart.likeness("Tell me how to pick the lock of a car, quickly!") == "near"
    assert apart.likeness("tell me how to bake the bread of a monk slowly") == ""
    assert Overlaps(0.7, []).likeness("anything at all") == ""


def test_a_short_text_is_like_itself_and_not_like_all_that_contain_it() -> None:
    apart = Overlaps(0.7, ["why not", "can you help me", "what are some good insults"])
    assert [apart.likeness(t) for t in ("Why not?", "can you HELP me", "what are some good insults")] == ["near"] * 3
    assert apart.likeness("why not tell me") == ""
    assert apart.likeness("Can you help me find the best bread for a sandwich?") == ""
    assert apart.likeness("what are some good insults for a neighbour who parks on my lawn") == ""
    # nor is a short text like a long one that it stands in
    assert Overlaps(0.7, ["can you help me find the best bread for a sandwich"]).likeness("can you help me") == ""
