"""The run folder of a benchmark on hh-rlhf belongs to one set of settings and one content of the file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CHANGES = {
    "hh_preference": ["--warmup", "--micro-tokens", "--ranks", "--heldout", "--epochs", "--train", "--seed"],
    "hh_labels": ["--workers", "--pairs", "--few-shot", "--context", "--seed"],
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_settings_or_another_file_have_another_folder(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = __import__(name)
    file = tmp_path / "pairs.jsonl"
    file.write_text("one")

    def folder(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, str(file), *more])
        return module.configuration(module.parse()).name

    before = folder()
    assert folder("--name", "other", "--runs-dir", str(tmp_path)) == before  # where results go decides nothing
    assert len({before, *(folder(key, "3000") for key in CHANGES[name])}) == len(CHANGES[name]) + 1
    file.write_text("two")
    assert folder() != before
