"""Small random models for tests, made in a moment and different from each other by seed."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.set_num_threads(1)  # on shared cores more threads only wait for each other

VOCAB = 64
END = 2


def save_llama(folder: Path, *, tied: bool, seed: int, pad: int = 0, layers: int = 2, std: float = 0.2) -> str:
    """A random `LlamaForCausalLM` of width 64 in `folder`; `std` wide enough that its outputs differ clearly."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        initializer_range=std,
        bos_token_id=1,
        eos_token_id=END,
        pad_token_id=pad,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def plain_logprobs(logits: torch.Tensor, ids: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """log p(ids[t] | ids[:t]) of one sequence [T] from its whole logits [T, V], written down; 0 for the first token."""
    table = torch.log_softmax(logits.float() / temperature, -1)
    return torch.tensor([0.0, *(table[t - 1, ids[t]].item() for t in range(1, len(ids)))])
