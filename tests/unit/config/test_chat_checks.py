"""What chat templates are told: refused where it cannot be, part of what decides the result of every stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cai_dist.config.loading.load import dump_run, load_run
from cai_dist.errors import ConfigError
from cai_dist.stages import evaluate, feedback, ppo, prepare, revise, sft


def run_of(tmp_path: Path, *overrides: str) -> Any:
    (tmp_path / "run.yaml").write_text("name: t\n", encoding="utf-8")
    return load_run(tmp_path / "run.yaml", overrides)


def test_arguments_come_from_files_and_the_command_line(tmp_path: Path) -> None:
    config = run_of(tmp_path, "models.chat_arguments.enable_thinking=false", "models.chat_arguments.level=low")
    assert config.models.chat_arguments == {"enable_thinking": False, "level": "low"}
    (tmp_path / "again.yaml").write_text(dump_run(config), encoding="utf-8")
    assert load_run(tmp_path / "again.yaml") == config


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("models.chat_arguments.tokenize=true", "models.chat_arguments.tokenize=True"),
        ("models.chat_arguments.messages=x", "must be a variable of the chat template"),
        ("models.chat_arguments.enable_thinking=true", "must be false or left out"),
        ("models.chat_arguments={thinking: true}", "must be false or left out"),
        ("models.chat_arguments.enable_thinking=1", "must be false or left out"),
        ("models.chat_arguments.enable_thinking=off", "is a text, which a template takes as true"),
        ("models.chat_arguments.tools_in_user_message=no", "is a text, which a template takes as true"),
        ("models={chat: plain, chat_arguments: {enable_thinking: false}}", "chat=plain uses no template"),
        ("models={chat: plain, chat_date: 2026-03-01}", "chat=plain uses no template"),
        ("models.chat_arguments={'a b': 1}", "must be a variable"),
        ("models.chat_arguments.a=[1]", "models.chat_arguments"),
        ("models.chat_date=2026-13-01", "must be a day as YYYY-MM-DD"),
        ("models.chat_date='20260301'", "must be a day as YYYY-MM-DD"),
    ],
)
def test_what_a_template_cannot_be_told_is_refused(tmp_path: Path, override: str, told: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        run_of(tmp_path, override)
    assert told in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("stage", [prepare, revise, sft, feedback, ppo, evaluate])
@pytest.mark.parametrize("override", ["models.chat_arguments.enable_thinking=false", "models.chat_date=2026-03-02"])
def test_another_argument_is_another_result(tmp_path: Path, stage: Any, override: str) -> None:
    """And a run without any has the settings that it had before there were such keys."""
    plain = stage.settings(run_of(tmp_path))
    assert plain != stage.settings(run_of(tmp_path, override))
    assert "chat_arguments" not in str(plain) and "chat_date" not in str(plain)
