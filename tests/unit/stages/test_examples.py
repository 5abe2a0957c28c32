"""The examples of docs/extending.md, each through the code that a run calls them by, as a package of another folder."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cai_dist.cluster.environment import worker_environment
from cai_dist.config.checks.run import check_run
from cai_dist.config.data import DataSource, PromptSource
from cai_dist.config.engine import EngineConfig
from cai_dist.config.loading.load import build_run
from cai_dist.data.prompts import load_prompt_set
from cai_dist.data.sources import rows_settings, source_files
from cai_dist.engines.factory import build_rollout_engine, build_train_engine
from cai_dist.errors import CaiError, ConfigError, DataError
from cai_dist.experience.rewards import shape
from cai_dist.registry import find_object, source_note
from cai_dist.stages import context, feedback, prepare
from cai_dist.stages.ai_feedback.labelling import label_pairs
from cai_dist.stages.context import RunContext
from cai_dist.stages.preflight.strategies import check_strategies
from cai_dist.types import Comparison, GenerateRequest, Prompt, SamplingParams, Turn
from tests.tiny import END, save_llama

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "examples" / "my_extensions").glob("[a-z]*.py"))


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "elsewhere"
    shutil.copytree(ROOT / "examples", folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.syspath_prepend(str(folder))
    find_object.cache_clear()
    yield folder / "my_extensions"
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_extensions"]:
        del sys.modules[name]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_short(example: Path) -> None:
    assert len(example.read_text(encoding="utf-8").splitlines()) <= 40


ALL: dict[str, Any] = {
    "name": "x",
    "engine": {
        "backend": "my_extensions.rollout_engine:FewAtATime",
        "training": "my_extensions.training_engine:Timed",
    },
    "data": {"helpful": {"source": "my_extensions.data_source:rows"}},
    "feedback": {"model": "my_extensions.feedback_model:Shorter"},
    "own_stages": [{"use": "my_extensions.stage:answer_lengths", "name": "lengths", "after": "revise"}],
    "ppo": {
        "algorithm": "my_extensions.algorithm:ranked",
        "samples_per_prompt": 2,
        "schedule": "my_extensions.schedule:Counted",
        "transfer": "my_extensions.transfer:one_at_a_time",
        "rewards": [{"use": "my_extensions.reward:length_penalty", "args": {"per_token": 0.5}}],
        "environment": {"use": "my_extensions.environment:Impatient", "args": {"words": 5}},
    },
}


def test_all_of_them_pass_the_check(tmp_path: Path) -> None:
    config = build_run(ALL | {"runs_dir": str(tmp_path)})
    check_strategies(config)
    check_run(config, ready=False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"engine": {"backend": "my_extensions.reward:length_penalty"}}, "engine.backend=my_extensions.reward:length_"),
        (
            {"engine": {"backend": "my_extensions.schedule:Counted"}},
            r"must be callable with \(dtype, config, require_s",
        ),
        ({"engine": {"training": "my_extensions.schedule:Counted"}}, "engine.training=.*must be callable"),
        ({"data": {"red_team": {"source": "my_extensions.data_source:row"}}}, "has no row; did you mean rows?"),
        ({"feedback": {"model": "my_extensions.data_source:rows"}}, r"must be callable with \(questions, options\)"),
        ({"ppo": {"schedule": "my_extensions.reward:length_penalty"}}, "ppo.schedule=.*must be callable"),
        (
            {"ppo": {"transfer": "my_extensions.data_source:rows"}},
            "ppo.transfer=.*must be callable with .transfer, plan",
        ),
        (
            {"ppo": {"environment": {"use": "my_extensions.schedule:Counted"}}},
            "ppo.environment=.*must be callable with",
        ),
        (
            {
                "own_stages": [
                    {"use": "my_extensions.stage:answer_lengths", "name": "x", "after": "sft", "args": {"u": 1}}
                ]
            },
            "own_stages.x=my_extensions.stage:answer_lengths: must be callable with .ctx, u=…",
        ),
        ({"ppo": {"rewards": [{"use": "my_extensions.reward:none"}]}}, "ppo.rewards=.*has no none"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(override: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check_strategies(build_run({"name": "x", **override}))
    assert "\n" not in str(caught.value)


def test_nothing_is_imported_for_a_run_without() -> None:
    check_strategies(build_run({"name": "x"}))
    assert not any(name.startswith("my_extensions") for name in sys.modules)


def test_the_algorithm_ranks_the_samples_of_a_prompt() -> None:
    ppo = build_run(
        {"name": "x", "ppo": ALL["ppo"] | {"samples_per_prompt": 3, "mini_batch": 64, "prompts_per_iteration": 64}}
    ).ppo
    rows = [[0.0]] * 3
    found = shape(rows, rows, None, torch.tensor([5.0, -1.0, 0.5], dtype=torch.float64), [False] * 3, ppo, 0.1)
    assert found.advantages.flatten().tolist() == [1.0, -1.0, 0.0]


def test_the_engine_gives_the_samples_of_the_built_in_one(tmp_path: Path) -> None:
    model = save_llama(tmp_path, tied=True, seed=1)
    request = GenerateRequest(tuple((3 + i, 4, 5) for i in range(6)), SamplingParams(4, stop_ids=(END,)), seed=7)
    found = {}
    for backend in ("hf", "my_extensions.rollout_engine:FewAtATime"):
        engine = build_rollout_engine(EngineConfig(backend=backend), "fp32")
        engine.load(model)
        found[backend] = [(list(s.response_ids), s.engine) for s in engine.generate(request)]
    plain, mine = found.values()
    assert [ids for ids, _ in plain] == [ids for ids, _ in mine] and {name for _, name in mine} == {"few"}
    own = context.model_settings(build_run(ALL))["engines"]
    paths = {"engine.backend": "rollout_engine:FewAtATime", "engine.training": "training_engine:Timed"}
    assert own == {key: source_note(f"my_extensions.{path}", "") for key, path in paths.items()}
    assert "engines" not in context.model_settings(build_run({"name": "x"}))


def test_a_training_engine_of_ones_own_is_made(mine: Path) -> None:
    arguments = "model, optimizer, sharding, dtype, total_steps, timeout, dropout"
    (mine / "training.py").write_text(f"def make({arguments}):\n    return (model, dropout)\n", encoding="utf-8")
    model: Any = object()
    made: Any = build_train_engine("my_extensions.training:make", model, None, None, "fp32", 1, 1.0, True)  # type: ignore[arg-type]
    assert made == (model, True)


def test_rows_are_read_like_those_of_a_file(mine: Path) -> None:
    path = "my_extensions.data_source:rows"
    found = load_prompt_set(PromptSource(source=path, heldout=6), "helpful", 0)
    assert found.records == 36 and len(found.prompts) == 36 and found.report.source == path
    assert found.prompts[0].turns[0].text.startswith("how to make ")
    assert source_files(path) == [] and source_files(DataSource(path=path)) == []
    before = prepare.settings(build_run(ALL))
    assert {"rows": before["rows"]} == rows_settings({"helpful": path})
    (mine / "data_source.py").write_text("def rows():\n    yield {'prompt': 'a'}\n    raise KeyError(3)\n")
    assert prepare.settings(build_run(ALL)) != before and "rows" not in prepare.settings(build_run({"name": "x"}))
    sys.modules.pop("my_extensions.data_source", None)
    find_object.cache_clear()
    with pytest.raises(DataError, match="my_extensions.data_source:rows: fails after row 1: KeyError: 3"):
        load_prompt_set(PromptSource(source=path, heldout=1), "helpful", 0)


PAIR = Comparison(Prompt("p", (Turn("human", "make rope"),), "red_team"), "wire", "wire it and wire it", 0.5, "ai", "")


def asked(run: RunContext, tmp_path: Path) -> Any:
    (label,) = label_pairs(run, None, tmp_path / "feedback", "labels", [PAIR], [["danger-1"]])
    return label


def test_the_feedback_model_prefers_the_shorter_answer_in_both_orders(
    make_run: Callable[..., RunContext], tmp_path: Path
) -> None:
    config = build_run(ALL)
    label = asked(make_run(feedback=config.feedback), tmp_path)
    assert label.first[0] == pytest.approx(label.second[0]) and label.p > 0.6
    assert label.mass == (pytest.approx(1.0),)
    assert "feedback" not in config.own_models and not config.feedback_is_sl
    note = source_note("my_extensions.feedback_model:Shorter", "")
    assert feedback.settings(config)["labelling"]["model"] == note


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ("[]", "gave 0 answers to 2 questions"),
        ("[(0.5, -1.0)] * 2", "are no log-probabilities"),
        ("[3] * 2", "two log-probabilities or None, not 3"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_answers_that_do_not_fit_end_the_stage(
    answers: str, message: str, mine: Path, make_run: Callable[..., RunContext], tmp_path: Path
) -> None:
    (mine / "odd.py").write_text(f"def odd(questions, options):\n    return {answers}\n", encoding="utf-8")
    sys.modules.pop("my_extensions.odd", None)
    find_object.cache_clear()
    config = build_run({"name": "x", "feedback": {"model": "my_extensions.odd:odd"}})
    with pytest.raises(CaiError, match=f"feedback.model=my_extensions.odd:odd: .*{message}"):
        asked(make_run(feedback=config.feedback), tmp_path)


def test_workers_of_a_joined_cluster_get_the_import_folders_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "somewhere:/else")
    found = worker_environment(1, loopback=False)["PYTHONPATH"].split(":")
    assert found == [str(Path("somewhere").absolute()), "/else", "${PYTHONPATH}"]
    assert "PYTHONPATH" not in worker_environment(1, loopback=True)
