"""`lora` of each stage that trains: what a run file may say, what is refused because no later stage could read it, and
that nothing is reserved for workers that are not started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cai_dist.cluster.placement import needed_cpus
from cai_dist.config.checks.run import check_run, missing_packages
from cai_dist.config.loading.load import build_run, merge
from cai_dist.config.run import RunConfig
from cai_dist.errors import ConfigError
from cai_dist.stages import dpo, ppo, preference, sft


def run_with(lora: Any, **sections: Any) -> RunConfig:
    return build_run(merge({"name": "x", "runs_dir": ".", "ppo": {"lora": lora}}, sections))


def test_the_default_is_all_weights_and_an_empty_section_is_rank_16() -> None:
    assert run_with(None).ppo.lora is None
    lora = run_with({}).ppo.lora
    assert lora is not None
    assert (lora.rank, lora.alpha, lora.dropout, lora.target_modules, lora.save) == (16, 32.0, 0.0, "auto", "merged")
    named = run_with({"target_modules": ["q_proj", "v_proj"]}).ppo.lora
    assert named is not None and named.target_modules == ("q_proj", "v_proj")


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 0}, "ppo.lora.rank=0: must be at least 1"),
        ({"alpha": 0}, "ppo.lora.alpha=0: must be greater than 0"),
        ({"dropout": 1}, "ppo.lora.dropout=1: must be less than 1"),
        ({"target_modules": []}, "ppo.lora.target_modules=[]: must be auto or at least one name"),
        ({"target_modules": ["q_proj", ""]}, "ppo.lora.target_modules=['q_proj', '']: must be auto or names of"),
        ({"target_modules": "q_proj"}, "ppo.lora.target_modules='q_proj': must be 'auto' or a list"),
        ({"save": "both"}, "ppo.lora.save='both': must be one of 'merged' or 'adapter'"),
        ({"quantization": "fp4"}, "ppo.lora.quantization='fp4': must be one of 'none', 'int8' or 'nf4'"),
        ({"quantization": "nf4", "save": "adapter"}, "save=adapter: must be merged with quantization=nf4"),
        ({"ranks": 8}, "did you mean ppo.lora.rank?"),
    ],
)
def test_a_mistake_is_one_line(lora: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run_with(lora)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_no_reference_workers_are_counted() -> None:
    roles = {role: {"cpus": cpus} for role, cpus in (("policy", 1.0), ("value", 1.0), ("reward", 0.5))}
    roles["rollout"] = {"cpus": 1.0, "workers": 2}
    both = {"ppo": {"placement": roles}, "cluster": {"num_cpus": 6.5}}
    # 2 ranks x 1 + 2 ranks x 1 + 0.5 + 2 x 1 = 6.5; a reference would add 0.25
    adapters = run_with({}, **both)
    assert adapters.ppo.roles == ("policy", "value", "reward", "rollout")
    assert needed_cpus(adapters) == 6.5
    check_run(adapters, ready=False)
    with pytest.raises(ConfigError, match="must be at least 6.75"):
        check_run(run_with(None, **both), ready=False)


def test_a_placement_of_the_reference_beside_adapters_takes_no_room() -> None:
    placed = {"ppo": {"placement": {"reference": {"workers": 2, "cpus": 50.0}}}}
    adapters, without = run_with({}, **placed), run_with({})
    check_run(adapters, ready=False)
    assert needed_cpus(adapters) == needed_cpus(without) < 50 < needed_cpus(run_with(None, **placed))


def stages_with(tmp_path: Path, **sections: Any) -> RunConfig:
    return build_run(merge({"name": "x", "runs_dir": str(tmp_path)}, sections))


def test_every_trained_stage_of_a_run_may_have_adapters(tmp_path: Path) -> None:
    assert stages_with(tmp_path).loras == {}
    each = {stage: {"lora": {"rank": rank}} for rank, stage in enumerate(("sft", "preference", "dpo", "ppo"), 1)}
    ranks = {stage: lora.rank for stage, lora in stages_with(tmp_path, **each).loras.items()}
    assert ranks == {"sft": 1, "preference": 2, "ppo": 4}
    assert stages_with(tmp_path, alignment="dpo", **each).loras.keys() == {"sft", "dpo"}
    with pytest.raises(ConfigError, match=r"sft.lora.rank=0: must be at least 1"):
        stages_with(tmp_path, sft={"lora": {"rank": 0}})


NF4, ZERO_3 = {"quantization": "nf4"}, {"sharding": {"zero": 3}}
RANKED = {"data": {"ranked_answers": {"source": "world"}}}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"preference": {"lora": {"save": "adapter"}}, **RANKED},
            "preference.lora.save=adapter: must be merged with data.ranked_answers",
        ),
        (
            {"sft": {"lora": {"save": "adapter"}}, "models": {"pretrained": "org/name"}},
            "sft.lora.save=adapter: must be merged with models.pretrained=org/name, a hub name",
        ),
        (
            {"preference": {"lora": {"save": "adapter"}}, "models": {"pretrained": "org/name"}},
            "preference.lora.save=adapter: must be merged with models.pretrained=org/name, a hub name",
        ),
        (
            {"sft": {"lora": NF4, "train": ZERO_3}},
            "sft.train.sharding.zero=3: must be 0, 1 or 2 with sft.lora.quantization=nf4",
        ),
        (
            {"preference": {"lora": NF4, "pretraining": {"train": ZERO_3}}, **RANKED},
            "preference.pretraining.train.sharding.zero=3: must be 0, 1 or 2 with preference.lora.quantization=nf4",
        ),
        (
            {"ppo": {"lora": NF4, "value": {"zero": 3}}},
            "ppo.value.zero=3: must be 0, 1 or 2 with ppo.lora.quantization=nf4",
        ),
    ],
)
def test_an_adapter_whose_base_nobody_keeps_is_one_line(sections: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check_run(stages_with(tmp_path, **sections), ready=False)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "sections",
    [
        {"preference": {"lora": {"save": "merged"}}, **RANKED},
        {"preference": {"lora": {"save": "adapter"}}},
        {"sft": {"lora": {"save": "merged"}}, "models": {"pretrained": "org/name"}},
        {"preference": {"init": "sl", "lora": {"save": "adapter"}}, "models": {"pretrained": "org/name"}},
        {"alignment": "dpo", "dpo": {"lora": {"save": "adapter"}}, "models": {"pretrained": "org/name"}},
        {"alignment": "dpo", "preference": {"lora": {"save": "adapter"}}, **RANKED},
        {"sft": {"lora": NF4, "train": {"sharding": {"zero": 2}}}, "ppo": {"policy": {"zero": 3}, "lora": {}}},
        {"ppo": {"algorithm": "rloo", "samples_per_prompt": 2, "lora": NF4, "value": {"zero": 3}}},
        {"preference": {"lora": NF4, "pretraining": {"train": ZERO_3}}},
    ],
)
def test_an_adapter_whose_base_is_kept_is_in_order(sections: dict[str, Any], tmp_path: Path) -> None:
    check_run(stages_with(tmp_path, **sections), ready=False)


def test_a_run_that_was_begun_before_there_were_adapters_goes_on(tmp_path: Path) -> None:
    """Its fingerprints: what is not set stands in none."""
    config = stages_with(tmp_path)
    for stage in (sft, preference, dpo):
        assert "lora" not in stage.settings(config)[stage.NAME]
        adapted = stages_with(tmp_path, **{stage.NAME: {"lora": {"rank": 3}}})
        assert stage.settings(adapted)[stage.NAME]["lora"]["rank"] == 3
    for stage in (sft, preference, dpo, ppo):
        plain, small = (
            stage.settings(stages_with(tmp_path, **{stage.NAME: {"lora": lora}}))[stage.NAME]["lora"]
            for lora in ({}, NF4)
        )
        assert "quantization" not in plain and small == plain | NF4


def test_a_missing_package_is_a_line_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cai_dist.config.checks.lora.find_spec", lambda name: None)
    assert missing_packages(stages_with(tmp_path, sft={"lora": {}})) == []
    [line] = missing_packages(stages_with(tmp_path, sft={"lora": NF4}))
    assert line.startswith("sft.lora.quantization=nf4: needs the package bitsandbytes: pip install")
