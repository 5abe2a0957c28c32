"""Rows 102 and 103: a model that would be computed otherwise than by transformers' `eager` attention, one sequence at a
time, is given an attention that honours all of it, or refused in one line when it is loaded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from cai_dist.config.engine import EngineConfig
from cai_dist.data.batches import sequence_positions
from cai_dist.engines.hf.forward import forward_arguments
from cai_dist.engines.hf.kv_cache import decode_attention, keep_sequences
from cai_dist.engines.hf.probe import probe_rollout
from cai_dist.engines.hf.rollout import HfRolloutEngine
from cai_dist.errors import ConfigError
from cai_dist.models.attention import SwallowedArgumentError, exact_attention, use_exact_attention
from cai_dist.models.causal import logit_scaling
from cai_dist.models.compare import close
from cai_dist.models.layout import trunk_of
from cai_dist.models.packed_attention import Packing, packed_attention
from cai_dist.models.probe import probe_causal, probe_scalar
from cai_dist.types import GenerateRequest, LabelRequest, SamplingParams
from tests.architectures import ARCHITECTURES
from tests.ids import ids_of

BY_NAME = {one.name: one for one in ARCHITECTURES}


def network(name: str) -> Any:
    return BY_NAME[name].network()


def alone(hf: Any, ids: tuple[int, ...]) -> Tensor:
    """Log-probabilities [T - 1] of the tokens after the first one."""
    with torch.no_grad():
        table = hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    return table[:-1].gather(-1, torch.tensor(ids)[1:, None]).squeeze(-1)


@pytest.mark.parametrize("name", ["softcap", "s_aux", "head_mask", "what_comes_next"])
@pytest.mark.parametrize("attention", [exact_attention, decode_attention])
def test_no_attention_swallows_an_argument(attention: Any, name: str) -> None:
    q, k = torch.ones(1, 4, 1, 8), torch.ones(1, 2, 1, 8)
    module = SimpleNamespace(num_key_value_groups=2, is_causal=True)
    with pytest.raises(SwallowedArgumentError, match=f"^{name}$"):
        attention(module, q, k, k, None, scaling=1.0, **{name: 2.0})
    for harmless in ({name: None}, {"sliding_window": 4}, {"use_cache": True}):
        assert attention(module, q, k, k, None, scaling=1.0, **harmless)[0].shape == (1, 1, 4, 8)


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        ({"softcap": 2.0}, "its attention uses softcap"),
        ({"position_bias": torch.ones(1)}, "its attention uses position_bias"),
        ({"what_comes_next": 2.0}, "its attention uses what_comes_next"),
        ({"sliding_window": 4}, "5 tokens, but its attention sees 4"),
        ({"is_causal": False}, "its attention does not take sequences in one row"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_packed_attention_refuses_what_it_would_swallow(extra: dict[str, Any], why: str) -> None:
    lengths = torch.tensor([5, 3])
    packing = Packing.of(lengths, sequence_positions(lengths, 8))
    states = torch.randn(1, 2, 8, 4)
    for harmless in ({}, {"sliding_window": 5}, {"is_causal": True}, dict.fromkeys(extra)):
        packed_attention(SimpleNamespace(is_causal=True), states, states, states, None, packing=packing, **harmless)
    with pytest.raises(ConfigError, match=why):
        packed_attention(SimpleNamespace(is_causal=True), states, states, states, None, packing=packing, **extra)


@pytest.mark.parametrize(("name", "expected"), [("Gemma 2", "eager"), ("Gemma 3 (text)", "cai_dist_exact")])
def test_attention_is_eager_where_sdpa_would_ignore_an_argument(name: str, expected: str) -> None:
    hf = network(name)
    assert hf.config._attn_implementation == "sdpa"
    use_exact_attention(hf)
    assert hf.config._attn_implementation == expected


def test_rollouts_and_labels_have_the_soft_cap(tmp_path: Path) -> None:
    network("Gemma 2").save_pretrained(tmp_path)
    engine = HfRolloutEngine("fp32", EngineConfig())
    engine.load(str(tmp_path))
    plain, ignored = network("Gemma 2"), network("Gemma 2")
    plain.set_attn_implementation("eager")
    prompts = ((3, 4, 5, 6, 7), (8, 9))
    for made in engine.generate(GenerateRequest(prompts, SamplingParams(6, 1.0, 1.0, ()), 0)):
        ids = ids_of(made)
        right = alone(plain, ids)[-6:]
        torch.testing.assert_close(torch.tensor(made.logprobs), right, rtol=0, atol=3e-5)
        assert (alone(ignored, ids)[-6:] - right).abs().max() > 1e-3
    found = engine.score_labels(LabelRequest(prompts, ((10,),)))
    right = torch.stack([alone(plain, (*prompt, 10))[-1] for prompt in prompts])
    torch.testing.assert_close(torch.tensor(found).squeeze(-1), right, rtol=0, atol=3e-5)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("RecurrentGemma", "a prompt in a batch has other results than alone"),
        ("RWKV", "it takes no cache that transformers has in common for its models"),
        ("MiniMax", "MiniMax uses cache of its own"),
        ("Nemotron-H", "limits its time steps without a cache, but not with one"),
    ],
)
def test_the_engine_refuses_by_name_what_it_would_serve_wrong(name: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"^engine.backend=hf: .*ForCausalLM cannot be served .*{why}") as caught:
        probe_rollout(network(name))
    assert "\n" not in str(caught.value) and "set engine.backend=vllm or take another model" in str(caught.value)


def test_the_engine_tries_a_model_when_it_loads_it(tmp_path: Path) -> None:
    network("RecurrentGemma").save_pretrained(tmp_path)
    engine = HfRolloutEngine("fp32", EngineConfig(), require_sync=True)
    with pytest.raises(ConfigError, match="RecurrentGemmaForCausalLM cannot be served"):
        engine.load(str(tmp_path))
    assert engine.status() == "empty"


def test_sequences_leave_with_all_that_a_cache_holds_of_them() -> None:
    """A layer with keys and a state (Falcon-H1): transformers' own `batch_select_indices` keeps the states of all."""
    hf = network("Falcon-H1")
    ids = torch.randint(3, 64, (3, 5), generator=torch.Generator().manual_seed(0))
    cache = DynamicCache(config=hf.config)
    with torch.no_grad():
        hf(input_ids=ids, past_key_values=cache, use_cache=True)
        before = [(layer.keys, layer.conv_states[0], layer.recurrent_states[0]) for layer in cache.layers]
        keep_sequences(cache, torch.tensor([2, 0]))
    for layer, states in zip(cache.layers, before, strict=True):
        for now, then in zip((layer.keys, layer.conv_states[0], layer.recurrent_states[0]), states, strict=True):
            assert now.shape[0] == 2 and torch.equal(now, then[[2, 0]])


def test_a_state_is_given_the_mask_of_the_new_tokens_alone() -> None:
    ids, mask, positions = torch.ones(2, 1, dtype=torch.long), torch.ones(2, 7), torch.full((2, 1), 6)
    for name, columns, cache in (("Mamba", 1, "cache_params"), ("Llama 3", 7, "past_key_values")):
        hf = network(name)
        given = forward_arguments(hf, ids, mask, positions, DynamicCache(config=hf.config))
        assert given["attention_mask"].shape == (2, columns) and cache in given
        assert ("position_ids" in given) == (name == "Llama 3")


@pytest.mark.parametrize(
    ("name", "trunk"),
    [
        ("Llama 4 (text)", "Llama4TextModel"),
        ("ModernBERT decoder", "ModernBertDecoderModel"),
        ("OPT", "OPTDecoder"),
        ("Mamba", "MambaModel"),
    ],
)
def test_the_trunk_is_found_in_every_architecture(name: str, trunk: str) -> None:
    assert type(trunk_of(network(name))).__name__ == trunk


def test_what_is_done_to_logits_has_many_names() -> None:
    scalings = {name: logit_scaling(BY_NAME[name].config()) for name in ("Falcon-H1", "RecurrentGemma", "Cohere")}
    assert {name: (one.scale, one.cap) for name, one in scalings.items()} == {
        "Falcon-H1": (0.5, None),
        "RecurrentGemma": (1.0, 2.0),
        "Cohere": (0.5, None),
    }


def test_a_model_that_does_not_run_at_all_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    hf = network("Llama 3")
    monkeypatch.setattr(type(hf.model), "forward", lambda *args, **kwargs: torch.ones(2) + torch.ones(3))
    for probe in (probe_rollout, lambda one: probe_causal(one, "padded")):
        with pytest.raises(
            ConfigError, match="LlamaForCausalLM: transformers cannot run this model .RuntimeError"
        ) as e:
            probe(hf)
        assert "\n" not in str(e.value)


def test_padding_that_changes_a_training_pass_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from cai_dist.models import layout

    def mixed(hf: Any, ids: Tensor, lengths: Tensor, kind: str) -> Tensor:
        states = right(hf, ids, lengths, kind)
        return states + 1e-3 * states.mean(0)

    right = layout.trunk_states
    monkeypatch.setattr(layout, "trunk_states", mixed)
    with pytest.raises(ConfigError, match="^models.layout=padded: .* cannot be padded .its results are then others"):
        probe_causal(network("Llama 3"), "padded")
    from transformers import AutoModelForSequenceClassification

    with pytest.raises(ConfigError, match="^models.layout=padded: LlamaForSequenceClassification cannot be padded"):
        probe_scalar(BY_NAME["Llama 3"].network(AutoModelForSequenceClassification), "padded")


def test_rounding_grows_with_the_number_of_layers_and_is_none_of_two() -> None:
    hf = network("Llama 3")
    one = torch.tensor([1.0, -4.0])
    assert close(hf, one + 3e-5, one) and not close(hf, one + 6e-5, one)
    assert close(hf, one + 6e-5, one, torch.tensor(40.0)) and not close(hf, torch.full((2,), torch.nan), one)
    assert not close(hf, one[:1], one)
    hf.config.num_hidden_layers = 32
    assert close(hf, one + 6e-4, one)
    assert close(hf, (one + 0.3).bfloat16(), one.bfloat16())
