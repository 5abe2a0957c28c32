"""The hidden tables, the splits and the prompts."""

from __future__ import annotations

import pickle

import pytest

from cai_dist.world import lexicon
from cai_dist.world.comparisons import helpful_comparisons
from cai_dist.world.oracle import judge, parse_request
from cai_dist.world.prompts import helpful_prompts, probe_prompts, red_team_prompts
from cai_dist.world.rules import Merits, better, dimension_of
from cai_dist.world.tables import World, WorldRequest

SEEDS = [0, 1, 2, 3, 4]


def test_the_vocabulary_has_no_word_twice() -> None:
    parts = [lexicon.KINDS, lexicon.KIND_STEPS, lexicon.MATERIALS, lexicon.MATERIAL_STEPS, lexicon.NAMES]
    words = [word for part in parts for word in part]
    assert len(words) == len(set(words)) == 14 + 14 + 32 + 32 + 8
    assert 150 <= len(lexicon.vocabulary()) <= 180
    assert lexicon.vocabulary().index(lexicon.PAD) == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_splits_are_disjoint_and_hold_both_sorts_of_material(seed: int) -> None:
    world = World(seed)
    pairs = [pair for part in world.combos.values() for pair in part]
    assert len(pairs) == len(set(pairs)) == 14 * 32
    assert len(world.hazard) == 16
    for part in world.combos.values():
        hazardous = sum(world.is_hazardous(material) for _, material in part)
        assert hazardous * 2 == len(part)


def test_recipes_are_one_to_one() -> None:
    world = World(3)
    assert sorted(world.kind_step.values()) == sorted(lexicon.KIND_STEPS)
    assert sorted(world.material_step.values()) == sorted(lexicon.MATERIAL_STEPS)


def test_seed_decides_the_tables() -> None:
    assert World(0) == World(0) == pickle.loads(pickle.dumps(World(0)))
    assert World(0).hazard != World(1).hazard
    assert World(0).kind_step != World(1).kind_step


@pytest.mark.parametrize("seed", SEEDS)
def test_prompts_are_unique_and_keep_to_their_split(seed: int) -> None:
    world = World(seed)
    prompts = red_team_prompts(world) + helpful_prompts(world)
    assert len({p.id for p in prompts}) == len({p.turns[-1].text for p in prompts}) == len(prompts)
    assert prompts == red_team_prompts(World(seed)) + helpful_prompts(World(seed))
    heldout = set(world.combos["heldout"])
    for prompt in prompts:
        request = parse_request(world, prompt)
        assert request is not None
        assert ((request.kind, request.material) in heldout) == (prompt.split == "heldout")
        harmful = world.is_hazardous(request.material) or request.extra == "mock"
        assert harmful == (prompt.kind == "red_team")


def test_there_are_enough_prompts_of_every_sort() -> None:
    world = World(0)
    red, helpful = red_team_prompts(world), helpful_prompts(world)
    assert [sum(p.split == s for p in red) for s in ("train", "heldout")] == [280, 90]
    assert [sum(p.split == s for p in helpful) for s in ("train", "heldout")] == [220, 60]
    judged = [judge(world, p, "") for p in red + helpful if p.split == "heldout"]
    assert sum(j.hazardous for j in judged) == 60
    assert sum(j.asks_mock and not j.hazardous for j in judged) == 30


@pytest.mark.parametrize("knowledge", ["unknown", "fact_only"])
def test_probe_prompts_are_about_materials_nobody_reviewed(knowledge: str) -> None:
    world = World(0)
    prompts = probe_prompts(world, knowledge)
    materials = {p.turns[-1].text.split()[2] for p in prompts}
    assert materials == set(world.of_knowledge(knowledge))
    assert not materials & {
        material for name in ("demonstration", "red_team", "heldout") for _, material in world.combos[name]
    }


def test_human_comparisons_are_about_help_on_benign_requests_alone() -> None:
    world = World(1)
    comparisons = helpful_comparisons(world, 1000, seed=0)
    assert comparisons == helpful_comparisons(world, 1000, seed=0)
    assert comparisons != helpful_comparisons(world, 1000, seed=1)
    heldout = set(world.combos["heldout"])
    right = 0
    for c in comparisons:
        request = parse_request(world, c.prompt)
        assert request is not None and not world.is_hazardous(request.material) and request.extra != "mock"
        assert (request.kind, request.material) not in heldout
        assert c.p_a in (0.0, 1.0) and c.source == "human"
        a, b = judge(world, c.prompt, c.response_a), judge(world, c.prompt, c.response_b)
        assert not a.rude and not b.rude
        assert a.helpful + b.helpful <= 1
        if a.helpful or b.helpful:
            right += a.helpful == (c.p_a == 1.0)
    exact = sum("take" in c.response_a + c.response_b for c in comparisons)
    assert 0.4 < sum(c.p_a for c in comparisons) / len(comparisons) < 0.6
    assert right / exact > 0.6


def test_request_text() -> None:
    assert WorldRequest("rope", "zorium").text() == "make rope zorium ?"
    assert WorldRequest("rope", "zorium", "mock", "bob").text() == "make rope zorium ? mock bob ."


def test_rules_by_hand() -> None:
    dangerous_polite, harmless_rude = Merits(True, False, 1), Merits(False, True, 2)
    assert better("danger", dangerous_polite, harmless_rude) == "b"
    assert better("rude", dangerous_polite, harmless_rude) == "a"
    assert better("general", dangerous_polite, harmless_rude) == "b"  # one harm each; b is the more useful
    assert better("danger", harmless_rude, harmless_rude) is None
    assert better("general", Merits(False, False, 0), Merits(False, False, 2)) == "b"  # an excuse loses
    assert better("danger", Merits(False, False, 0), Merits(False, False, 2)) is None
    assert dimension_of("rude-3") == "rude" and dimension_of("cai-harmless-1") is None
