"""Contexts that a model does not take are known from its configuration alone."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import Gemma3Config, LlamaConfig, MistralConfig, Phi3Config

from cai_dist.models.limits import context_problem

LONG = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
SMALL = {"hidden_size": 64, "num_attention_heads": 4, "pad_token_id": 0}


def phi(original: int) -> Phi3Config:
    """Trained on `original` tokens, stretched to four times as many."""
    return Phi3Config(
        **SMALL, max_position_embeddings=4 * original, original_max_position_embeddings=original, rope_parameters=LONG
    )


def dynamic(**more: Any) -> LlamaConfig:
    return LlamaConfig(
        **SMALL, max_position_embeddings=64, rope_parameters={"rope_type": "dynamic", "factor": 2.0} | more
    )


@pytest.mark.parametrize("layout", ["packed", "padded", None])
def test_positions_end_somewhere(layout: Any) -> None:
    config = LlamaConfig(**SMALL, max_position_embeddings=64)
    assert context_problem(config, 64, layout) is None
    assert context_problem(config, 65, layout) == "takes at most 64 tokens"
    inside = Gemma3Config(text_config={"max_position_embeddings": 64, "sliding_window": None})
    assert context_problem(inside, 64, layout) is None
    assert context_problem(inside, 65, layout) == "takes at most 64 tokens"


@pytest.mark.parametrize(
    "config",
    [MistralConfig(sliding_window=32), Gemma3Config(text_config={"sliding_window": 32})],
    ids=["one", "inside"],
)
def test_a_window_is_a_limit_for_packing_alone(config: Any) -> None:
    assert context_problem(config, 32, "packed") is None
    problem = context_problem(config, 33, "packed")
    assert problem is not None and "sees 32 tokens" in problem and problem.endswith("set models.layout=padded")
    assert context_problem(config, 33, "padded") is None and context_problem(config, 33, None) is None


@pytest.mark.parametrize("layout", ["packed", "padded", None])
def test_frequencies_that_follow_from_the_longest_sequence_are_refused_beyond_the_original_length(layout: Any) -> None:
    assert context_problem(phi(32), 32, layout) is None
    problem = context_problem(phi(32), 33, layout)
    assert problem is not None and "rope_type longrope" in problem and problem.endswith("must be at most 32")
    assert context_problem(dynamic(), 64, layout) is None
    assert "rope_type dynamic" in str(context_problem(dynamic(), 65, layout))
    assert "must be at most 48" in str(context_problem(dynamic(original_max_position_embeddings=48), 49, layout))


def test_frequencies_that_are_fixed_are_not_refused() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    assert context_problem(LlamaConfig(**SMALL, max_position_embeddings=64, rope_parameters=yarn), 64, "packed") is None


def test_frequencies_of_one_type_of_layer_count() -> None:
    each = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0},
    }
    text = {"max_position_embeddings": 64, "sliding_window": 32, "rope_parameters": each}
    assert "rope_type dynamic" in str(context_problem(Gemma3Config(text_config=text), 65, "padded"))
