"""What the stage hands to its workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cai_dist.config.supervised import SftConfig
from cai_dist.config.training import LoraConfig
from cai_dist.stages import sft
from cai_dist.stages.context import RunContext
from cai_dist.types import TokenSequence


class NoGroup:
    """Takes every call and does nothing but make the folder of an export."""

    def broadcast(self, phase: str, method: str, folder: str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize(("dropout", "expected"), [("model", True), ("off", False), (None, True)])
def test_the_models_dropout_is_a_setting(
    make_run: Callable[..., RunContext], monkeypatch: pytest.MonkeyPatch, dropout: str | None, expected: bool
) -> None:
    asked = handed(make_run, monkeypatch, SftConfig() if dropout is None else SftConfig(dropout=dropout))  # type: ignore[arg-type]
    assert asked["dropout"] is expected and asked["lora"] is None


def test_adapters_are_a_setting(make_run: Callable[..., RunContext], monkeypatch: pytest.MonkeyPatch) -> None:
    lora = LoraConfig(rank=3, save="adapter")
    assert handed(make_run, monkeypatch, SftConfig(lora=lora))["lora"] == lora


def handed(make_run: Callable[..., RunContext], monkeypatch: pytest.MonkeyPatch, config: SftConfig) -> dict[str, Any]:
    """The settings of the worker."""
    run, asked = make_run(sft=config), {}

    @contextmanager
    def start(*args: Any, **settings: Any) -> Iterator[NoGroup]:
        asked.update(settings)
        yield NoGroup()

    monkeypatch.setattr(sft, "trained_model", start)
    monkeypatch.setattr(sft, "train", lambda *args: 1)
    monkeypatch.setattr(sft, "model_path", lambda run, name: "model")
    monkeypatch.setattr(sft, "token_examples", lambda run, model: [TokenSequence((1, 2), (0.0, 1.0))])
    sft.execute(run)
    return asked
