"""Constitutions load whole or not at all, and their hash follows their content."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cai_dist.constitution import Constitution, load_constitution, parse_constitution
from cai_dist.errors import ConfigError, DataError

PACKAGE = Path(sys.modules["cai_dist.constitution"].__file__ or "").parent


@pytest.fixture
def data() -> dict:
    return yaml.safe_load((PACKAGE / "default.yaml").read_text())


@pytest.mark.parametrize("name", ["default", "micro"])
def test_packaged_ones_have_sixteen_and_sixteen(name: str) -> None:
    constitution = load_constitution(name)
    assert constitution.name == name
    assert len(constitution.critique_principles) == len(constitution.comparison_principles) == 16


def test_a_file_of_the_same_content_has_the_same_hash(tmp_path: Path, data: dict) -> None:
    copy = tmp_path / "mine.yaml"
    copy.write_text(yaml.safe_dump(data))
    assert load_constitution(str(copy)) == load_constitution("default")
    assert load_constitution(str(copy)).sha256 == load_constitution("default").sha256


def test_the_hash_is_the_same_in_another_process() -> None:
    code = "from cai_dist.constitution import load_constitution; print(load_constitution('default').sha256)"
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(PACKAGE.parents[1])}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == load_constitution("default").sha256


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(version="2"),
        lambda d: d["critique_principles"][3].update(revision_request="Do nothing."),
        lambda d: d["comparison_principles"].reverse(),
        lambda d: d["templates"]["labels"].update(critique="Review: "),
        lambda d: d["few_shot_comparisons"][0].update(answer="A"),
    ],
)
def test_the_hash_changes_with_any_content(data: dict, change) -> None:
    before = parse_constitution(data, "x").sha256
    change(data)
    assert parse_constitution(data, "x").sha256 != before


@pytest.mark.parametrize(
    ("change", "entry"),
    [
        (lambda d: d.pop("comparison_principles"), "comparison_principles"),
        (lambda d: d.update(surprise=1), "surprise"),
        (lambda d: d["critique_principles"][2].pop("revision_request"), "critique_principles.2.revision_request"),
        (lambda d: d["critique_principles"][2].update(revision_request=7), "critique_principles.2.revision_request"),
        (
            lambda d: d["critique_principles"][2].update(critique_request="  "),
            "critique_principles[2].critique_request",
        ),
        (lambda d: d["critique_principles"][2].update(id="harm"), "critique_principles: the id 'harm'"),
        (lambda d: d.update(comparison_principles=[]), "comparison_principles"),
        (lambda d: d["templates"].update(comparison="{conversation}{principle}{a}"), "slot {b}"),
        (lambda d: d["templates"].update(comparison="{conversation}{principle}{a}{b}{a}"), "slot {a}"),
        (lambda d: d["templates"].update(comparison="{conversation}{principle}{a}{b}{c}"), "slot {c}"),
        (lambda d: d["few_shot_critiques"][1].pop(), "few_shot_critiques[1]"),
        (lambda d: d["few_shot_critiques"][1][0].update(role="narrator"), "few_shot_critiques.1.0.role"),
        (lambda d: d["few_shot_comparisons"][0].update(answer="C"), "few_shot_comparisons.0.answer"),
        (lambda d: d["few_shot_comparisons"][0].update(turns=[]), "few_shot_comparisons[0].turns"),
    ],
)
def test_a_malformed_one_is_one_line_with_file_and_entry(tmp_path: Path, data: dict, change, entry: str) -> None:
    change(data)
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(DataError) as caught:
        load_constitution(str(path))
    message = str(caught.value)
    assert str(path) in message and entry in message and "\n" not in message


@pytest.mark.parametrize("content", [b"- 1\n- 2\n", b"name: [unclosed", b"\xff\xfe\x00", b"", b"name: 2020-01-01\n"])
def test_what_is_no_constitution_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_constitution(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_path_and_wrong_folder(tmp_path: Path) -> None:
    for source in (str(tmp_path / "nothing.yaml"), str(tmp_path)):
        with pytest.raises(ConfigError, match="constitution="):
            load_constitution(source)


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text(f"name: !!python/object/apply:os.system ['touch {tmp_path}/pwned']\n")
    with pytest.raises(DataError):
        load_constitution(str(path))
    assert not (tmp_path / "pwned").exists()


def test_a_worked_comparison_may_name_a_principle_by_id(data: dict) -> None:
    data["few_shot_comparisons"][0]["principle"] = "privacy"
    constitution = parse_constitution(data, "x")
    [text] = [p.text for p in constitution.comparison_principles if p.id == "privacy"]
    assert constitution.few_shot_comparisons[0].principle == text


def test_neither_answer_is_the_better_guess_in_the_examples() -> None:
    answers = [e.answer for e in load_constitution("default").few_shot_comparisons]
    assert answers.count("A") == answers.count("B")


def test_loading_imports_nothing_heavy() -> None:
    code = (
        "import sys; from cai_dist.constitution import load_constitution; load_constitution('default');"
        "print([m for m in ('torch', 'transformers', 'ray', 'deepspeed') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parents[1])}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_it_is_plain_json_all_the_way_down() -> None:
    from dataclasses import asdict

    constitution = load_constitution("default")
    again = parse_constitution(json.loads(json.dumps(asdict(constitution))), "x")
    assert isinstance(again, Constitution) and again == constitution


@pytest.mark.parametrize("name", ["a+b", "a/b", "two words", "a\n"])
def test_ids_that_cannot_be_joined_or_be_file_names_are_refused(tmp_path: Path, data: dict, name: str) -> None:
    data["comparison_principles"][2]["id"] = name
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises((ConfigError, DataError), match=r"comparison_principles\[2\].id=.*letters, digits") as caught:
        load_constitution(str(tmp_path / "c.yaml"))
    assert "\n" not in str(caught.value)
