"""Tiny random models of the micro-world's words, and the folder of a run that holds them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cai_dist.config.loading.load import dump_run
from cai_dist.constitution import Constitution, FewShotComparison
from cai_dist.models.load import load_scalar
from cai_dist.stages.context import RunContext
from cai_dist.tracking.atomic import write_json
from cai_dist.types import Turn
from cai_dist.world.tokenizer import build_tokenizer
from tests.unit.stages.conftest import make_run  # noqa: F401

torch.set_num_threads(1)
GOOD, BAD, ASK = "take mix then stir .", "no no no .", "make cake salt ?"


def save_chat_model(folder: Path, seed: int = 0) -> Path:
    """A random language model with the micro-world's tokenizer; of 512 tokens at most."""
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_preference_model(folder: Path, chat_model: Path) -> Path:
    """A scalar model on the trunk of `chat_model`, with a head that is far from 0."""
    made = load_scalar(str(chat_model), "fp32", 1)
    with torch.no_grad():
        made.hf.score.weight.mul_(20.0)
    made.hf.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def with_examples(constitution: Constitution) -> Constitution:
    """The same with worked comparisons and worked revisions, which `micro` has none of."""
    roles = ("human", "assistant", "critique_request", "critique", "revision_request", "revision")
    return replace(
        constitution,
        few_shot_comparisons=tuple(
            FewShotComparison((Turn("human", f"make {word} ?"),), GOOD, f"no {word} .", answer)
            for word, answer in (("rope", "A"), ("lamp", "B"), ("glue", "A"), ("soap", "B"), ("cake", "A"))
        ),
        few_shot_critiques=tuple(
            tuple(Turn(role, f"{word} {i} .") for i, role in enumerate(roles)) for word in ("rope", "lamp", "glue")
        ),
    )


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="session")
def preference_folder(tmp_path_factory: pytest.TempPathFactory, chat_folder: Path) -> Path:
    return save_preference_model(tmp_path_factory.mktemp("preference"), chat_folder)


@pytest.fixture
def run_of(make_run: Callable[..., RunContext], chat_folder: Path) -> Callable[..., RunContext]:  # noqa: F811
    """A run whose stage `prepare` is done with the chat model in every role."""

    def made(**sections: Any) -> RunContext:
        ctx = make_run(**sections)
        ctx.manifest.set_constitution(**ctx.constitution_note)
        (ctx.run_dir / "config.yaml").write_text(dump_run(ctx.config))
        roles = {role: {"path": str(chat_folder)} for role in ("assistant", "pretrained", "feedback")}
        (ctx.run_dir / "prepare").mkdir(exist_ok=True)
        write_json(ctx.run_dir / "prepare" / "models.json", roles)
        assert json.loads((ctx.run_dir / "manifest.json").read_text())["constitution"]
        return ctx

    return made
