"""Which tokens end a turn, by the files beside a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cai_dist.data.chat import ChatFormat
from cai_dist.errors import DataError
from cai_dist.models import ends
from cai_dist.models.ends import end_ids
from tests.unit.data.chat_families import FAMILIES, tokenizer

GLM = next(family for family in FAMILIES if family.name == "GLM 4")


def write(folder: Path, **files: object) -> str:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, ()),
        ({"config": {"eos_token_id": 2}}, (2,)),
        ({"config": {"eos_token_id": [7, 2]}, "generation_config": {"eos_token_id": [9, 7]}}, (9, 7, 2)),
        ({"config": {"text_config": {"eos_token_id": 5}}, "generation_config": {"eos_token_id": None}}, (5,)),
        ({"generation_config": {"temperature": 1.0}}, ()),
        ({"config": [1]}, ()),
    ],
    ids=["none", "one", "both", "text", "silent", "list"],
)
def test_the_ends_of_both_files_each_once(tmp_path: Path, files: dict[str, object], found: tuple[int, ...]) -> None:
    assert end_ids(write(tmp_path, **files)) == found


def test_an_adapters_base_is_looked_at(tmp_path: Path) -> None:
    base = write(tmp_path / "base", generation_config={"eos_token_id": [4, 5]})
    adapter = write(tmp_path / "adapter", adapter_config={"base_model_name_or_path": base}, config={"eos_token_id": 3})
    assert end_ids(adapter) == (3, 4, 5)


@pytest.mark.parametrize("said", ["2", True, -1, [1, 2.5]])
def test_what_is_no_token_is_refused(tmp_path: Path, said: object) -> None:
    with pytest.raises(DataError, match=r"generation_config.json: eos_token_id=.*: must be a token id or a list"):
        end_ids(write(tmp_path, generation_config={"eos_token_id": said}))
    (tmp_path / "generation_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="cannot be read"):
        end_ids(str(tmp_path))


def test_a_model_of_the_hub_is_asked_for_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, generation_config={"eos_token_id": [8]})
    asked: list[tuple[str, str]] = []

    def cached_file(source: str, name: str, **_: object) -> str | None:
        asked.append((source, name))
        return str(tmp_path / name) if name == "generation_config.json" else None

    monkeypatch.setattr(ends, "cached_file", cached_file)
    assert end_ids("org/model") == (8,)
    assert ("org/model", "generation_config.json") in asked and ("org/model", "config.json") in asked

    def broken(source: str, name: str, **_: object) -> str | None:
        raise OSError("no\nnetwork")

    monkeypatch.setattr(ends, "cached_file", broken)
    with pytest.raises(DataError, match=r"org/model: cannot read .*: no network"):
        end_ids("org/model")


def test_only_special_tokens_are_stops() -> None:
    """A default of the architecture (eos_token_id: 2 of Llama) is an ordinary word of another tokenizer."""
    made = tokenizer(GLM)
    user, word = made.convert_tokens_to_ids("<|user|>"), made("a")["input_ids"][0]
    chat = ChatFormat(made, ends=(user, word, 10**6))
    assert set(chat.stop_ids) == {made.eos_token_id, user}
