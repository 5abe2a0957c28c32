"""The whole pipeline on adapters, as a user types it: no stage but the first model leaves whole weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from cai_dist.models.load import load_hf_causal, load_hf_scalar
from tests.integration import pipeline

ADAPTERS = """\
extends: {tiny}
name: adapters
data: {{ranked_answers: {{source: none}}, harm_ratings: {{source: none}}}}
sft: {{lora: {{rank: 4, save: adapter}}}}
preference: {{init: sl, lora: {{rank: 4, save: adapter}}}}
ppo: {{reference: null, reward: {{ranks: 2}}, value_init: sl, lora: {{rank: 2, save: adapter}}}}
"""

FOUR_BITS = """\
extends: {tiny}
name: four-bits
sft: {{lora: {{rank: 4, quantization: nf4}}, train: {{sharding: {{zero: 2}}}}}}
preference:
  lora: {{rank: 4, quantization: nf4}}
  pretraining: {{train: {{sharding: {{zero: 1}}}}}}
ppo: {{reference: null, lora: {{rank: 2, quantization: int8}}, policy: {{zero: 2}}}}
"""


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.timeout(1800)
def test_a_quantised_base_in_every_stage(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason='needs bitsandbytes: pip install -e ".[quant]"')
    file = tmp_path / "four-bits.yaml"
    file.write_text(FOUR_BITS.format(tiny=pipeline.TINY))
    done = pipeline.run(file, tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "four-bits"
    assert set(json.loads((run / "evaluation.json").read_text())["models"]) == {"base", "sl", "rl"}
    for line in pipeline.lines_of(run, "ppo"):  # sampler and trainer have one model
        assert line.get("mismatch_max", 0.0) < 1e-3
    AutoModelForCausalLM.from_pretrained(run / "ppo" / "model")


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.timeout(1800)
def test_adapters_from_the_first_stage_to_the_last(tmp_path: Path) -> None:
    file = tmp_path / "adapters.yaml"
    file.write_text(ADAPTERS.format(tiny=pipeline.TINY))
    done = pipeline.run(file, tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "adapters"
    for stage, base in (("sft", "prepare/world-model"), ("preference", "sft/model"), ("ppo", "sft/model")):
        settings = json.loads((run / stage / "model" / "adapter_config.json").read_text())
        assert settings["base_model_name_or_path"] == str(run / base)
        assert not list((run / stage).rglob("model*.safetensors"))
    assert set(json.loads((run / "evaluation.json").read_text())["models"]) == {"base", "sl", "rl"}
    load_hf_scalar(str(run / "preference" / "second" / "model"), "fp32")
    whole = AutoModelForCausalLM.from_pretrained(run / "prepare" / "world-model")
    aligned = dict(load_hf_causal(str(run / "ppo" / "model"), "fp32").named_parameters())
    moved = {name for name, weight in whole.named_parameters() if not weight.equal(aligned[name])}
    assert moved == {name for name in aligned if "_proj" in name}
