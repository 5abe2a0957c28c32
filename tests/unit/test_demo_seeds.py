"""README's results are those that are stored: ranges over seeds and kinds of machine."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cai_dist.report.evaluation import MODELS

ROOT = Path(__file__).parents[2]
STORED = json.loads((ROOT / "benchmarks" / "results" / "demo-seeds.json").read_text(encoding="utf-8"))
PLAIN = [one for one in STORED["runs"] if not one["overrides"]]


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return __import__("demo_seeds_pages")


@pytest.fixture
def seeds(pages: ModuleType) -> ModuleType:
    return __import__("demo_seeds")


def run_with(engaged: float, elo: float, **changed: Any) -> dict[str, Any]:
    one = copy.deepcopy(PLAIN[0])
    one["evaluation"]["models"]["rl"]["engaged"]["value"] = engaged
    one["evaluation"]["elo"]["harmlessness"]["rl"]["value"] = elo
    return one | changed


def test_readme_and_page_are_made_of_what_is_stored(pages: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert pages.readme_with(readme, STORED["runs"]) == readme, "run: python benchmarks/demo_seeds.py --readme"
    page = (ROOT / "benchmarks" / "results" / "demo-seeds.md").read_text(encoding="utf-8")
    assert pages.seeds_page("demo", STORED["runs"]) == page, "run: python benchmarks/demo_seeds.py --readme"


def test_models_are_called_as_in_a_run_s_own_table(pages: ModuleType) -> None:
    assert {name: MODELS[name] for name in ("base", "sl", "rl")} == pages.MODELS


def test_readme_s_table_holds_every_stored_run_of_the_demo(pages: ModuleType) -> None:
    """Read from the page itself, by other means than those that wrote it."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for measure in pages.MEASURES:
        line = re.search(rf"^    {measure} +(.*)$", readme, re.MULTILINE)
        assert line is not None
        cells = [[float(x) for x in cell.split("–")] for cell in line[1].split()]
        for cell, model in zip(cells, ("base", "sl", "rl"), strict=True):
            values = [one["evaluation"]["models"][model][measure]["value"] for one in PLAIN]
            assert (cell[0], cell[-1]) == pytest.approx((min(values), max(values)), abs=0.00501), (measure, model)


def test_the_table_gives_the_lowest_and_the_highest_run(pages: ModuleType) -> None:
    runs = [
        run_with(0.961, 614.2, seed=0, machine={"cpu": "one"}),
        run_with(0.772, 469.4, seed=0, machine={"cpu": "two"}),
        run_with(0.835, 500.0, seed=7, machine={"cpu": "two"}),
    ]
    block = pages.readme_block(runs)
    assert re.search(r"^    engaged .* 0\.77–0\.96$", block, re.MULTILINE)
    assert "RL-CAI +469 to +614\n" in block
    assert "Lowest and highest of 3 runs: seeds 0, 7, on one and two.\n" in block
    text = f"a\n{pages.BEGIN}old\n{pages.END}b\n"
    other_settings = run_with(0.1, 0.0, overrides=["ppo.iterations=1"])
    assert pages.readme_with(text, [*runs, other_settings]) == f"a\n{pages.BEGIN}{block}{pages.END}b\n"
    with pytest.raises(ValueError, match="are gone"):
        pages.readme_with("a\n", runs)


def test_a_run_of_another_machine_or_seed_stands_beside_and_the_same_is_replaced(seeds: ModuleType) -> None:
    first = run_with(0.9, 600.0, machine={"cpu": "one"}, seed=0)
    runs: list[dict[str, Any]] = []
    for new in (first, first | {"machine": {"cpu": "two"}}, first | {"seed": 1}, first | {"overrides": ["a=1"]}):
        runs = seeds.with_run(runs, new)
    assert len(runs) == 4
    again = first | {"date": "later"}
    runs = seeds.with_run(runs, again)
    assert len(runs) == 4 and again in runs and first not in runs


def test_the_kind_of_machine_is_what_a_sum_may_depend_on(seeds: ModuleType) -> None:
    found = seeds.machine()
    assert found.keys() == {"cpu", "cpus", "instructions", "torch", "python"} and all(found.values())


def test_readme_says_what_intervals_cover() -> None:
    words = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert "cover the choice of the held-out prompts alone, not this chance of training" in words
