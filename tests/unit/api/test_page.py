"""Every example of docs/python.md runs, one after the other, on tiny models."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import cai_dist

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_examples_run(chat_folder: Path, preference_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    for number, code in enumerate(EXAMPLES):
        exec(compile(code, f"docs/python.md, example {number}", "exec"), names)
        if number == 0:
            assert set(names) >= {"MODEL", "PREFERENCE"}
            names |= {"MODEL": str(chat_folder), "PREFERENCE": str(preference_folder)}
    assert 0 < names["p_a"] < 1 and 0 < names["score"] < 1 and 0 < names["preferred"] < 1
    assert len(names["found"].rounds) == 2


def test_the_page_names_every_public_function_and_class() -> None:
    errors_and_parts = {"CaiError", "RevisedAnswer", "RevisionRound", "RunConfig"}
    missing = [name for name in cai_dist.__all__ if name not in PAGE]
    assert set(missing) <= errors_and_parts and len(EXAMPLES) >= 7
