"""Every architecture is equal to plain transformers, or refused, and `docs/models.md` says which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.architectures import ARCHITECTURES, Architecture
from tests.model_table import PAGE, line, measure

ALWAYS = {"Llama 4 (text)", "Qwen3.5", "Gemma 2", "GPT-2", "gpt-oss", "Falcon-H1", "Mamba", "RecurrentGemma"}
"""One of each kind; the others with `--full`."""


def rows() -> list[Any]:
    return [
        pytest.param(one, id=one.name, marks=() if one.name in ALWAYS else pytest.mark.full) for one in ARCHITECTURES
    ]


@pytest.mark.parametrize("architecture", rows())
def test_the_page_says_what_is_measured(architecture: Architecture, tmp_path: Path) -> None:
    found = line(architecture, measure(architecture, tmp_path))
    assert found in PAGE.read_text(encoding="utf-8").splitlines(), "run: python -m tests.model_table"


def test_every_architecture_stands_on_the_page_once() -> None:
    written = [row for row in PAGE.read_text(encoding="utf-8").splitlines() if row.count("|") == 12]
    names = [row.split("|")[1].strip() for row in written[2:]]
    assert names == [one.name for one in ARCHITECTURES] and len(names) >= 30
    assert {one.name for one in ARCHITECTURES} > ALWAYS
