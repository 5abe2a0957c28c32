"""Stages of one's own: their place, when they run again, and what they may not give."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cai_dist.config.checks.run import check_run
from cai_dist.config.loading.load import build_run
from cai_dist.config.own_stages import OwnStage, with_own
from cai_dist.config.run import RunConfig
from cai_dist.constitution import load_constitution
from cai_dist.errors import CaiError, ConfigError, DataError
from cai_dist.registry import find_object
from cai_dist.stages.context import RunContext
from cai_dist.stages.own_stage import execute_own, find_work
from cai_dist.stages.pipeline import run_one, stage_specs
from cai_dist.tracking.console import Console
from cai_dist.tracking.manifest import Manifest
from cai_dist.tracking.metrics import Tracker

SOURCE = """
from pathlib import Path
from cai_dist.errors import DataError

def count(ctx, start=0):
    found = ctx.folder("count") / "runs.txt"
    found.write_text(str(start + len(ctx.paths.sl_model.read_text())))
    return [found]

def nothing(ctx): return None
def elsewhere(ctx): return ["/etc/hostname"]
def missing(ctx): return [ctx.folder("x") / "none"]
def fails(ctx): raise KeyError("no such thing")
def mistake(ctx): raise DataError("prompts.jsonl:3: not JSON")
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "my_stages.py"
    path.write_text(SOURCE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield path
    sys.modules.pop("my_stages", None)
    find_object.cache_clear()


def config_of(tmp_path: Path, *stages: dict[str, Any]) -> RunConfig:
    return build_run({"name": "t", "runs_dir": str(tmp_path), "constitution": "micro", "own_stages": list(stages)})


def own(use: str = "count", name: str = "count", after: str = "sft", **args: Any) -> dict[str, Any]:
    return {"use": f"my_stages:{use}", "name": name, "after": after, "args": args}


def context(config: RunConfig, tmp_path: Path) -> RunContext:
    run_dir = tmp_path / "t"
    run_dir.mkdir(exist_ok=True)
    tracker = Tracker(run_dir, config.tracking.model_copy(update={"wandb": "off"}), {})
    return RunContext(
        config, run_dir, Manifest(run_dir), tracker, Console("quiet"), load_constitution("micro"), lambda: False
    )


def test_each_stands_behind_the_one_that_it_follows_in_their_order() -> None:
    stages = [OwnStage(use="m:f", name=n, after=a) for n, a in (("b", "sft"), ("c", "sft"), ("d", "b"), ("e", "ppo"))]
    assert with_own(("revise", "sft", "ppo"), stages) == ("revise", "sft", "b", "d", "c", "ppo", "e")
    assert with_own(("revise", "sft"), stages) == ("revise", "sft", "b", "d", "c")


def test_it_runs_once_and_again_when_something_has_changed(tmp_path: Path, module: Path) -> None:
    config = config_of(tmp_path, own())
    assert config.stages.index("count") == config.stages.index("sft") + 1
    ctx = context(config, tmp_path)
    model = ctx.paths.sl_model
    model.parent.mkdir(parents=True)

    def sft(text: str) -> None:
        model.write_text(text)
        ctx.manifest.begin("sft", text, {})
        ctx.manifest.done("sft", [model], 0.0)

    def run(settings: RunConfig = config) -> tuple[str, int]:
        run_one(ctx, stage_specs(settings)["count"])
        return (tmp_path / "t/count/runs.txt").read_text(), len(list((tmp_path / "t").glob("count.old-*")))

    sft("one")
    assert run() == ("3", 0) == run()
    (tmp_path / "t/count/runs.txt").write_text("kept")
    assert run() == ("kept", 0), "it was not run again"
    sft("three")
    assert run() == ("5", 1)
    assert run(config_of(tmp_path, own(start=10))) == ("15", 2)
    module.write_text(SOURCE + "# other\n", encoding="utf-8")
    assert run(config_of(tmp_path, own(start=10))) == ("15", 3)


@pytest.mark.parametrize(
    ("use", "said"),
    [
        ("nothing", "TypeError: 'NoneType' object is not iterable"),
        ("elsewhere", "gave /etc/hostname, which is no file of the run"),
        ("missing", "which is no file of the run"),
        ("fails", "KeyError: 'no such thing'"),
    ],
)
def test_what_goes_wrong_in_it_is_one_line_that_names_it(tmp_path: Path, use: str, said: str) -> None:
    ctx = context(config_of(tmp_path, own(use)), tmp_path)
    with pytest.raises(CaiError) as caught:
        execute_own(ctx, ctx.config.own_stages[0])
    assert str(caught.value).startswith(f"stage count (my_stages:{use}): ") and said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_users_mistake_in_it_stays_one(tmp_path: Path) -> None:
    ctx = context(config_of(tmp_path, own("mistake")), tmp_path)
    with pytest.raises(DataError, match="^prompts.jsonl:3: not JSON$"):
        execute_own(ctx, ctx.config.own_stages[0])


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([own(name="sft")], "own_stages: the name sft is taken"),
        ([own(name="endpoint")], "own_stages: the name endpoint is taken"),
        ([own(), own(after="revise")], "own_stages: the name count is taken"),
        ([own(after="dpo")], "own_stages: count: after=dpo: must be one of revise, sft, feedback"),
        ([own(after="later"), own(name="later")], "own_stages: count: after=later: must be one of"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, stages: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_run(config_of(tmp_path, *stages), ready=False)
    assert said in str(caught.value)


def test_what_is_not_there_is_refused_before_any_work(tmp_path: Path) -> None:
    (stage,) = config_of(tmp_path, own("cont")).own_stages
    with pytest.raises(ConfigError, match="^own_stages.count=my_stages:cont: the module my_stages has no cont; did"):
        find_work(stage)
