"""The chat format of a model in a run: its files beside the tokenizer, the run's settings and its one day."""

from __future__ import annotations

import json
from datetime import date, datetime
from pathlib import Path

import pytest

from cai_dist.config.run import ModelsConfig
from cai_dist.stages.execution.chat_format import chat_format
from cai_dist.tracking import manifest
from cai_dist.types import Turn
from tests.unit.data.chat_families import FAMILIES, tokenizer

FAMILY = {family.name: family for family in FAMILIES}
ASK = (Turn("human", "Hi?"),)


def saved(folder: Path, name: str) -> str:
    made = tokenizer(FAMILY[name])
    made.save_pretrained(folder)
    config = {"eos_token_id": [made.convert_tokens_to_ids(end) for end in FAMILY[name].ends]}
    (folder / "generation_config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)


def test_the_format_of_a_model_knows_its_files_and_the_runs_day(make_run, tmp_path: Path) -> None:
    run = make_run(models=ModelsConfig(chat_date="2026-03-02"))
    for name in ("GLM 4", "gpt-oss"):
        chat = chat_format(run, saved(tmp_path / name, name))
        ends = {chat.tokenizer.convert_tokens_to_ids(end) for end in FAMILY[name].ends}
        assert ends <= set(chat.stop_ids) and len(ends) == 3
        assert FAMILY[name].date in chat.tokenizer.decode(list(chat.prompt_ids(ASK)))


def test_arguments_reach_the_template(make_run, tmp_path: Path) -> None:
    model = saved(tmp_path / "m", "gpt-oss")
    told = make_run(models=ModelsConfig(chat_arguments={"strict": True}))
    (tmp_path / "m" / "chat_template.jinja").write_text(
        "{% if strict %}{{ 'Strictly. ' }}{% endif %}" + FAMILY["gpt-oss"].template, encoding="utf-8"
    )
    for run, begins in ((told, True), (make_run(), False)):
        chat = chat_format(run, model)
        assert chat.plain_text(chat.prompt_ids(ASK)).startswith("Strictly. ") == begins


def test_prompts_are_the_same_after_midnight(make_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And another run on another day has another date in them."""
    model = saved(tmp_path / "m", "gpt-oss")
    today = [datetime(2026, 11, 30, 23, 59)]
    clock = type("Clock", (), {"now": staticmethod(lambda zone: today[0])})
    monkeypatch.setattr(manifest, "datetime", clock)
    run = make_run()
    run.manifest.begin("prepare", "f", {})
    before = chat_format(run, model).prompt_ids(ASK)
    today[0] = datetime(2026, 12, 1)
    assert chat_format(make_run(), model).prompt_ids(ASK) == before
    assert "2026-11-30" in chat_format(run, model).tokenizer.decode(list(before))
    run.manifest._path.unlink()
    assert date.fromisoformat(make_run().manifest.date) == date(2026, 12, 1)
    assert chat_format(make_run(), model).prompt_ids(ASK) != before
