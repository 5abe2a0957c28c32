"""Row 4 of what people bring: what is needed at the end of a run is tried before its first stage, without weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, CohereConfig, GPTJConfig, LlamaConfig, PreTrainedConfig

from cai_dist.cli import main as cli
from cai_dist.config.data import DataConfig, RatingSource
from cai_dist.config.loading.load import build_run
from cai_dist.config.ppo import PpoConfig
from cai_dist.config.preference import DpoConfig, PreferenceConfig
from cai_dist.config.run import ModelsConfig
from cai_dist.config.supervised import SftConfig
from cai_dist.config.training import LoraConfig
from cai_dist.errors import ConfigError
from cai_dist.models import load
from cai_dist.stages import prepare
from cai_dist.stages.context import RunContext
from cai_dist.stages.preflight import rehearsal
from cai_dist.stages.preflight.rehearsal import Rehearsal, rehearse, room_problem
from cai_dist.world.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer()
ROWS = len(TOKENIZER)
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
SHORT = {stage: {"sampling": {"max_new_tokens": 8}} for stage in ("revise", "feedback", "ppo", "evaluate")}


def folder(path: Path, config: PreTrainedConfig | None = None, **files: Any) -> str:
    """A model folder without weights: config.json, a tokenizer and `files` (name without .json -> content)."""
    (config or LlamaConfig(vocab_size=ROWS, **SIZES)).save_pretrained(path)
    TOKENIZER.save_pretrained(path)
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return str(path)


def tried(
    make_run: Any, path: str, layout: str = "packed", roles: tuple[str, ...] = ("pretrained",), **more: Any
) -> Rehearsal:
    models = ModelsConfig(pretrained=path, assistant=path, layout=layout, context=64)  # type: ignore[arg-type]
    run: RunContext = make_run(models=models, **(SHORT | more))
    return rehearse(run, dict.fromkeys(roles, path))


def test_a_model_that_does_all_that_is_asked_passes_in_every_role(make_run, tmp_path: Path) -> None:
    found = tried(make_run, folder(tmp_path / "m"), roles=("assistant", "pretrained", "feedback"))
    assert (found.problems, found.notes) == ([], [])


def test_a_type_without_a_scalar_head_is_refused_by_name_with_the_ways_out(make_run, tmp_path: Path) -> None:
    path = folder(tmp_path / "m", CohereConfig(vocab_size=ROWS, **SIZES))
    [line] = tried(make_run, path).problems
    assert line.startswith(
        f"models.pretrained={path}: transformers has no sequence-classification model of type 'cohere'"
    )
    assert "the preference model and PPO's value model would be; set alignment=dpo, or take another" in line
    assert tried(make_run, path, alignment="dpo").problems == []
    assert tried(make_run, path, roles=("assistant",)).problems == []
    rated = DataConfig(harm_ratings=RatingSource(source="ratings.jsonl"))
    [line] = tried(make_run, path, alignment="dpo", data=rated).problems
    assert "the model of harm ratings would be; set data.harm_ratings.source=none, or take another" in line


def test_a_token_without_an_embedding_is_refused(make_run, tmp_path: Path) -> None:
    config = LlamaConfig(vocab_size=ROWS, **SIZES)
    path = folder(tmp_path / "m", config)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<pad-of-mine>"]})
    tokenizer.save_pretrained(path)
    [line] = tried(make_run, path).problems
    assert f"up to id {ROWS} ('<pad-of-mine>'), the model {ROWS} embeddings; resize" in line
    config.vocab_size = ROWS + 1
    config.save_pretrained(path)
    assert tried(make_run, path).problems == []


def test_a_generation_config_that_would_not_be_saved_is_a_note(make_run, tmp_path: Path) -> None:
    path = folder(tmp_path / "m", generation_config={"temperature": 0.9, "top_p": 0.6})
    found = tried(make_run, path)
    assert found.problems == []
    assert "exported models have do_sample=True" in found.notes[0]


def test_a_generation_config_that_nothing_can_load_is_refused(make_run, tmp_path: Path) -> None:
    path = folder(tmp_path / "m", generation_config={"max_new_tokens": 0})
    [line] = tried(make_run, path).problems
    assert line.startswith(f"models.pretrained={path}: ") and "max_new_tokens" in line


def test_a_layout_that_an_architecture_does_not_fit_is_refused(make_run, tmp_path: Path) -> None:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8, "n_positions": 64}
    path = folder(tmp_path / "m", GPTJConfig(vocab_size=ROWS, **sizes))
    [line] = tried(make_run, path).problems
    assert "GPTJForCausalLM cannot be packed" in line and line.endswith("set models.layout=padded")
    assert tried(make_run, path, "padded").problems == []


def test_heads_that_the_ranks_of_a_sequence_cannot_share_are_refused(make_run, tmp_path: Path) -> None:
    path = folder(tmp_path / "m", LlamaConfig(vocab_size=ROWS, **SIZES))
    wrong = PpoConfig(sampling={"max_new_tokens": 8}, policy={"ranks": 3, "sequence_parallel": 3})
    assert tried(make_run, path, ppo=wrong).problems == [
        f"ppo.policy.sequence_parallel=3: models.pretrained={path} has 2 attention heads, not divisible by 3; set "
        "another number, or 1"
    ]
    right = PpoConfig(sampling={"max_new_tokens": 8}, policy={"ranks": 2, "sequence_parallel": 2})
    assert tried(make_run, path, ppo=right).problems == []


def test_adapters_on_layers_that_the_model_lacks_are_refused(make_run, tmp_path: Path) -> None:
    path = folder(tmp_path / "m")
    wrong = PpoConfig(sampling={"max_new_tokens": 8}, lora=LoraConfig(rank=2, target_modules=("c_attn",)))
    lines = tried(make_run, path, ppo=wrong).problems
    assert lines and all("ppo.lora.target_modules: 'c_attn' is no linear layer" in line for line in lines)
    right = PpoConfig(sampling={"max_new_tokens": 8}, lora=LoraConfig(rank=2, target_modules=("q_proj",)))
    assert tried(make_run, path, ppo=right).problems == []


def test_each_stages_adapters_are_tried_on_the_model_that_it_trains(make_run, tmp_path: Path) -> None:
    path, lora = folder(tmp_path / "m"), LoraConfig(rank=2, target_modules=("c_attn",))
    for stage, section, alignment in (
        ("sft", SftConfig(lora=lora), "ppo"),
        ("preference", PreferenceConfig(lora=lora), "ppo"),
        ("dpo", DpoConfig(lora=lora), "dpo"),
    ):
        [line] = tried(make_run, path, alignment=alignment, **{stage: section}).problems
        assert f"{stage}.lora.target_modules: 'c_attn' is no linear layer" in line
    assert tried(make_run, path, sft=SftConfig(lora=LoraConfig(rank=2)), dpo=DpoConfig(lora=lora)).problems == []


def test_quantised_weights_are_refused_where_they_would_be_trained(make_run, tmp_path: Path) -> None:
    path = folder(tmp_path / "m")
    settings = json.loads((tmp_path / "m" / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "m" / "config.json").write_text(json.dumps(settings))
    [line] = tried(make_run, path).problems
    assert "its weights are quantised (gptq), which cannot be trained" in line
    assert tried(make_run, path, roles=("assistant",)).problems == []


def test_a_tokenizer_that_does_not_come_back_beside_an_export_is_refused(make_run, tmp_path, monkeypatch) -> None:
    path = folder(tmp_path / "m")
    without = tuple(name for name in load._TOKENIZER_FILES if name != "chat_template.jinja")
    monkeypatch.setattr(load, "_TOKENIZER_FILES", without)
    [line] = tried(make_run, path).problems
    assert line.startswith(f"models.pretrained={path}: ") and "chat template" in line


def test_every_problem_is_listed_and_prepare_refuses_before_the_micro_world_is_made(
    make_run, tmp_path, monkeypatch
) -> None:
    path = folder(tmp_path / "m", CohereConfig(vocab_size=ROWS - 1, **SIZES))
    run = make_run(models=ModelsConfig(pretrained=path, context=64), **SHORT)
    monkeypatch.setattr(prepare, "pretrained_world", lambda run: pytest.fail("work was done"))
    with pytest.raises(ConfigError) as caught:
        prepare.execute(run)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2 and "embeddings" in lines[0] and "sequence-classification" in lines[1]


def test_room_for_what_the_run_leaves_is_looked_for(make_run, tmp_path: Path, monkeypatch) -> None:
    path = folder(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(bytes(1000))
    run = make_run(models=ModelsConfig(pretrained=path), alignment="dpo")
    assert rehearsal.model_bytes(run, path) == {"sft/model": 1000, "dpo/model": 1000}
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(rehearsal.shutil, "disk_usage", lambda _: usage._replace(free=2000))
    assert room_problem(tmp_path, {"sft/model": 900, "dpo/model": 900}) is None
    line = room_problem(tmp_path, {"sft/model": 1000, "dpo/model": 1000})
    assert line is not None and "sft/model, dpo/model" in line and "make room" in line
    monkeypatch.setattr(prepare, "rehearse", lambda *_: Rehearsal())
    with pytest.raises(ConfigError, match="make room or set another runs_dir"):
        prepare.refuse_models(run, {"pretrained": path})


def test_another_use_of_the_models_is_tried_though_prepare_was_done() -> None:
    """Its fingerprint: a run of dpo that goes on as one of ppo needs a scalar head that nobody looked for."""
    base: dict[str, Any] = {"name": "x", "models": {"pretrained": "given"}}
    uses = [{"alignment": "dpo"}, {}, {"ppo": {"lora": {"rank": 4}}}, {"engine": {"backend": "vllm"}}]
    uses += [{"sft": {"lora": {"rank": 4}}}, {"preference": {"lora": {"rank": 4}}}]
    found = [json.dumps(prepare.settings(build_run(base | one))) for one in uses]
    assert len(set(found)) == len(found)
    other = {"ppo": {"lora": {"rank": 8, "dropout": 0.1}}}
    assert json.dumps(prepare.settings(build_run(base | other))) == found[2]


def test_check_deep_tries_the_models_without_a_run_and_without_weights(tmp_path: Path, capsys: Any) -> None:
    path = folder(tmp_path / "m", generation_config={"temperature": 0.9})
    (tmp_path / "m" / "model.safetensors").write_bytes(b"not read")
    file = tmp_path / "run.yaml"
    sampled = "".join(f"{stage}: {{sampling: {{max_new_tokens: 8}}}}\n" for stage in SHORT)
    file.write_text(
        f"name: x\nconstitution: micro\nruns_dir: {tmp_path}/runs\n{sampled}"
        f"models: {{assistant: world, pretrained: {path}, feedback: {path}, context: 64}}\n"
    )
    assert cli.main(["check", "--deep", str(file)]) == 0
    captured = capsys.readouterr()
    assert "in order" in captured.out and "what --deep tries" not in captured.out
    assert "exported models have do_sample=True" in captured.err
    assert not (tmp_path / "runs").exists()
    folder(tmp_path / "m", CohereConfig(vocab_size=ROWS, **SIZES))
    assert cli.main(["check", "--deep", str(file)]) == 2
    [line] = [x for x in capsys.readouterr().err.splitlines() if x.startswith("cai-dist: error: ")]
    assert f"models.pretrained={path}: transformers has no sequence-classification model of type 'cohere'" in line


def test_a_name_that_no_chat_template_mentions_is_refused(make_run, tmp_path: Path) -> None:
    """A template takes any name without a word, a misspelt one too: thoughts stay on, in silence."""
    path = folder(tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = "{% if enable_thinking is defined %}{% endif %}" + tokenizer.chat_template
    tokenizer.save_pretrained(path)
    other = folder(tmp_path / "other")

    def found(*paths: str, **arguments: bool) -> list[str]:
        roles = ("assistant", "pretrained")
        models = ModelsConfig(pretrained=path, assistant=path, context=64, chat_arguments=arguments)
        return rehearse(make_run(models=models, **SHORT), dict(zip(roles, paths, strict=False))).problems

    assert found(path, other, enable_thinking=False) == []
    [line] = found(path, other, enable_thinkin=False)
    assert line == (
        "models.chat_arguments: no model's chat template has a variable enable_thinkin; did you mean enable_thinking?"
    )
    [line] = found(other, qqq=False)
    assert line.endswith("has a variable qqq; leave it out")
