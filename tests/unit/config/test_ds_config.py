import json
from pathlib import Path

import pytest

from cai_dist.config.ds_config import PACKAGED, build_ds_config
from cai_dist.config.training import Dtype, OptimizerConfig, ShardingConfig
from cai_dist.errors import ConfigError

OPTIMIZER = OptimizerConfig(lr=0.5, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1, grad_clip=2.0)
REPOSITORY = Path(__file__).resolve().parents[3]


def build(**kwargs: object) -> dict:
    return build_ds_config(ShardingConfig(ranks=2, micro_batch=3, **kwargs), OPTIMIZER, "fp32")  # type: ignore[arg-type]


@pytest.mark.parametrize("zero", range(4))
def test_every_stage_has_a_complete_file(zero: int) -> None:
    config = build(zero=zero)
    assert config["zero_optimization"]["stage"] == zero
    assert config["optimizer"] == {
        "type": "AdamW",
        "params": {"lr": 0.5, "betas": [0.8, 0.9], "eps": 1e-6, "weight_decay": 0.1, "torch_adam": True, "fused": True},
    }
    assert config["gradient_clipping"] == 2.0
    assert (config["train_batch_size"], config["gradient_accumulation_steps"]) == (6, 1)
    assert config["bf16"] == {"enabled": False}
    assert "auto" not in json.dumps(config)


def test_packaged_variants_go_by_name() -> None:
    offload = build(zero=3, ds_config="zero3_offload")
    assert offload["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    score = build_ds_config(ShardingConfig(ranks=2, zero=3), None, "bf16")
    assert not {"optimizer", "data_types", "gradient_clipping"} & score.keys() and score["bf16"] == {"enabled": True}
    assert "auto" not in json.dumps(score)


def test_the_folder_at_the_top_of_the_repository_is_the_packaged_one() -> None:
    assert {path.stem for path in (REPOSITORY / "ds_configs").glob("*.json")} == set(PACKAGED)
    assert (REPOSITORY / "ds_configs").resolve() == REPOSITORY / "cai_dist" / "ds_configs"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("zero", range(4))
def test_a_file_that_leaves_everything_out_gets_what_the_run_decides(tmp_path: Path, zero: int, dtype: Dtype) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": zero}, "gradient_clipping": "auto", "mine": 3}))
    sharding = ShardingConfig(ranks=2, micro_batch=3, zero=zero)  # type: ignore[arg-type]
    mine = build_ds_config(sharding.model_copy(update={"ds_config": str(path)}), OPTIMIZER, dtype)
    packaged = build_ds_config(sharding, OPTIMIZER, dtype)
    assert mine.pop("mine") == 3
    decided = mine.keys() - {"zero_optimization", "zero_force_ds_cpu_optimizer"}
    assert {key: mine[key] for key in decided} == {key: packaged[key] for key in decided}
    assert decided == packaged.keys() - {"zero_optimization", "steps_per_print", "wall_clock_breakdown"}
    assert mine["bf16"] == {"enabled": dtype == "bf16"}
    assert mine["optimizer"]["params"]["weight_decay"] == 0.1 and mine["gradient_clipping"] == 2.0


def test_an_optimiser_that_leaves_a_value_out_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    params = {"lr": "auto", "betas": [0.8, 0.9], "bias_correction": True}
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}, "optimizer": {"type": "Adam", "params": params}}))
    assert build(zero=2, ds_config=str(path))["optimizer"] == {
        "type": "Adam",
        "params": {"lr": 0.5, "betas": [0.8, 0.9], "bias_correction": True, "eps": 1e-6, "weight_decay": 0.1},
    }


@pytest.mark.parametrize(("zero", "dtype", "expected"), [(0, "fp32", "fp32"), (0, "bf16", "bf16"), (2, "bf16", "fp32")])
def test_gradients_are_summed_in_full_precision(zero: int, dtype: Dtype, expected: str) -> None:
    found = build_ds_config(ShardingConfig(zero=zero), OPTIMIZER, dtype)  # type: ignore[arg-type]
    assert found["data_types"] == {"grad_accum_dtype": expected}
    assert found.get("communication_data_type") == ("fp32" if zero < 2 else None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected a JSON object with a zero_optimization section"),
        ('{"zero_optimization": {"stage": 3}}', "sharding.zero=2 and zero_optimization.stage=3"),
        (
            '{"zero_optimization": {"stage": 2}, "gradient_accumulation_steps": 4}',
            "gradient_accumulation_steps=4 .* must be 1",
        ),
        ('{"zero_optimization": {"stage": 2}, "fp16": {"enabled": true}}', "fp16 .* models.dtype to fp32 or bf16"),
        ('{"zero_optimization": {"stage": 2}, "gradient_clipping": 9}', r"gradient_clipping=9 .* make it 2\.0"),
        ('{"zero_optimization": {"stage": 2}, "bf16": {"enabled": true}}', "bf16.enabled=True .* make it False"),
        ('{"zero_optimization": {"stage": 2}, "bf16": true}', "bf16 in .* must be a JSON object"),
        ('{"zero_optimization": {"stage": 2}, "optimizer": {"type": "Lion"}}', "optimizer.type=Lion .* one of AdamW"),
        ('{"zero_optimization": {"stage": 2}, "optimizer": {"params": {"eps": 1}}}', "params.eps=1 .* make it 1e-06"),
        (
            '{"zero_optimization": {"stage": 2}, "scheduler": {"type": "WarmupLR"}}',
            "scheduler in .* the run has its own",
        ),
        (
            '{"zero_optimization": {"stage": 2}, "bf16": {"bf16_master_weights_and_grads": true}}',
            "bf16.bf16_master_weights_and_grads=True .* must be False",
        ),
        (
            '{"zero_optimization": {"stage": 2}, "bf16": {"check_grad_overflow": false}}',
            "bf16.check_grad_overflow=False .* must be True",
        ),
        (
            '{"zero_optimization": {"stage": 2}, "data_types": {"grad_accum_dtype": "bf16"}}',
            "data_types.grad_accum_dtype=bf16 .* make it fp32",
        ),
        (
            '{"zero_optimization": {"stage": 2, "sub_group_size": "auto"}}',
            'nothing in the run fills "auto" of zero_optimization.sub_group_size',
        ),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        build(zero=2, ds_config=str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_lists_what_is() -> None:
    with pytest.raises(ConfigError, match="cannot be read .*zero3_offload"):
        build(zero=2, ds_config="/no/such.json")
