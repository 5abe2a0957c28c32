"""What is refused, and what is kept apart, before the first stage."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import MistralConfig

from cai_dist.config.run import ModelsConfig, RunConfig
from cai_dist.errors import ConfigError
from cai_dist.stages.groups import export_model
from cai_dist.stages.prepare import check_context, settings
from tests.tiny import save_llama


def test_a_context_that_the_model_was_not_made_for_is_refused(make_run, tmp_path: Path) -> None:
    model = save_llama(tmp_path / "model", tied=True, seed=0)
    short = {stage: {"sampling": {"max_new_tokens": 8}} for stage in ("revise", "feedback", "ppo", "evaluate")}
    check_context(make_run(models=ModelsConfig(context=128), **short), "assistant", model)
    run = make_run(models=ModelsConfig(context=129), **short)
    with pytest.raises(ConfigError, match=r"models.context=129: models.assistant .* takes at most 128 tokens"):
        check_context(run, "assistant", model)


def test_a_window_narrower_than_the_context_is_refused_where_the_model_is_trained_packed(make_run, tmp_path) -> None:
    MistralConfig(sliding_window=32).save_pretrained(tmp_path / "model")
    short = {stage: {"sampling": {"max_new_tokens": 8}} for stage in ("revise", "feedback", "ppo", "evaluate")}

    def check(role: str, context: int, layout: str = "packed") -> None:
        models = ModelsConfig(context=context, layout=layout)
        check_context(make_run(models=models, **short), role, str(tmp_path / "model"))

    check("pretrained", 32)
    with pytest.raises(ConfigError, match=r"^models.context=33: models.pretrained .*; set models.layout=padded$"):
        check("pretrained", 33)
    check("pretrained", 33, "padded")
    check("assistant", 33)


def test_another_context_is_checked_again() -> None:
    one, other = (settings(RunConfig(name="t", models=ModelsConfig(context=n))) for n in (256, 512))
    assert one != other


def test_an_export_is_whole_or_not_there_and_clears_what_a_killed_one_left(tmp_path: Path) -> None:
    target = tmp_path / "model"

    def half(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise ConnectionError

    with pytest.raises(ConnectionError):
        export_model(half, target)
    assert list(tmp_path.iterdir()) == []
    export_model(lambda folder: (folder / "config.json").write_text("{}"), target)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
