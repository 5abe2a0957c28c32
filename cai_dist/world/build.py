"""The small model of the micro-world."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cai_dist.config.run import WorldConfig
from cai_dist.tracking.quiet import quiet_libraries
from cai_dist.world import lexicon
from cai_dist.world.tokenizer import build_tokenizer

CONTEXT = 256
"""Longest sequence in tokens; the longest document has about 100."""


quiet_libraries()


def model_config(config: WorldConfig, vocab_size: int, context: int = CONTEXT) -> LlamaConfig:
    """A Llama of 0.1 to 1 M parameters with its own output head (untied, so that every engine updates both alike)."""
    ids = {token: index for index, token in enumerate(lexicon.SPECIALS)}
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        attention_dropout=0.0,
        pad_token_id=ids[lexicon.PAD],
        bos_token_id=None,
        eos_token_id=ids[lexicon.EOS],
    )


def write_initial_model(config: WorldConfig, seed: int, folder: Path) -> None:
    """Random weights that depend on `seed` alone, and the tokenizer, in the Hugging Face layout."""
    tokenizer = build_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(model_config(config, len(tokenizer)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
