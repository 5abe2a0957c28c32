"""Row 19 of the list of known RLHF bugs: packed = padded = what plain transformers makes of each sequence alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig

from cai_dist.errors import ConfigError
from cai_dist.losses.logprobs import LogitScaling
from cai_dist.models import packed_attention
from cai_dist.models.causal import CausalModel, logit_scaling
from cai_dist.models.layout import attention_window
from cai_dist.models.scalar import ScalarHeadModel
from tests.tiny import VOCAB

LENGTHS = torch.tensor([7, 1, 4, 9])
IDS = torch.randint(VOCAB, (21,), generator=torch.Generator().manual_seed(0))
WANTED = torch.tensor([t % 7 in (0, 3, 4, 5) for t in range(21)])
TEMPERATURE = 0.7

_COMMON = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 32, "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_GROUPED = _COMMON | {"num_key_value_heads": 2}


@pytest.fixture(autouse=True)
def several_rectangles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths as small as these would share one rectangle: here 9 and 7 do, 4 and 1 have their own."""
    monkeypatch.setattr(packed_attention, "SHORT", 1)


def config(name: str, **extra: Any) -> PreTrainedConfig:
    """A tiny configuration of an architecture: `config("Llama", tie_word_embeddings=True)`."""
    base = _COMMON if name in ("GPTNeoX", "Bloom") else _GROUPED
    if name == "GPT2":
        base = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32} | {
            key: _COMMON[key] for key in ("initializer_range", "pad_token_id", "bos_token_id", "eos_token_id")
        }
    return getattr(transformers, f"{name}Config")(**(base | extra))


GOOD = {
    "llama, tied": config("Llama", tie_word_embeddings=True),
    "qwen2: bias, grouped queries": config("Qwen2"),
    "gpt-neox": config("GPTNeoX", tie_word_embeddings=False),
    "gpt2: learned positions": config("GPT2"),
    "granite: scaled logits": config("Granite", logits_scaling=3.0, attention_multiplier=0.5),
    "gemma3: capped logits, norms, its own head width": config(
        "Gemma3Text", head_dim=16, query_pre_attn_scalar=8, sliding_window=32, final_logit_softcapping=2.0
    ),
}
UNPACKABLE = {
    "softcap": config("Gemma2", head_dim=8, query_pre_attn_scalar=8, sliding_window=32, attn_logit_softcapping=2.0),
    "s_aux": config("GptOss", head_dim=8, num_local_experts=2, num_experts_per_tok=1, rope_parameters=None),
    "attention interface": config("Bloom"),
    "results are then others": config("Lfm2", layer_types=["conv", "full_attention"]),
}


def network(of: PreTrainedConfig, auto: Any = AutoModelForCausalLM) -> Any:
    """A random model, the same each time; a sequence classifier has one label."""
    of = copy.deepcopy(of)
    of.num_labels = 1
    torch.manual_seed(0)
    return auto.from_config(of).eval()


def eager(of: PreTrainedConfig) -> Any:
    """The same model with the attention of its own file; `sdpa` ignores what some layers ask for."""
    model = network(of)
    model.set_attn_implementation("eager")
    return model


def plain(hf: Any) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of every token, from the whole logits of one sequence after the other."""
    logprobs, entropies = [], []
    for ids in IDS.split(LENGTHS.tolist()):
        table = torch.log_softmax(hf(input_ids=ids[None], use_cache=False).logits[0] / TEMPERATURE, -1)
        zero = table.new_zeros(1)
        logprobs += [zero, table[:-1].gather(-1, ids[1:, None]).squeeze(-1)]
        entropies += [zero, -(table.exp() * table).sum(-1)[:-1]]
    return torch.cat(logprobs), torch.cat(entropies)


def assert_same_gradients(one: Any, out: Tensor, other: Any, expected: Tensor) -> None:
    """Of a weighted sum of both outputs with respect to every parameter, within 1e-5 of the largest gradient."""
    ramp = torch.linspace(-1, 1, len(IDS))
    grads = []
    for net, x in ((one, out), (other, expected)):
        (ramp * x).sum().backward()
        grads.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    mine, theirs = grads
    assert mine.keys() == theirs.keys() and mine
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-5, atol=1e-5 * largest)


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("name", list(GOOD))
def test_a_causal_model_is_plain_transformers(name: str, layout: Any) -> None:
    reference = network(GOOD[name])
    expected = [torch.where(WANTED, x, 0.0) for x in plain(reference)]
    model = CausalModel(network(GOOD[name]), layout)
    found = model(IDS, LENGTHS, WANTED, TEMPERATURE, True)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert expected[0].abs().max() > 1
    assert_same_gradients(model.hf, found[0] + found[1].flip(0), reference, expected[0] + expected[1].flip(0))


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("name", ["llama, tied", "qwen2: bias, grouped queries", "gpt-neox", "gpt2: learned positions"])
def test_a_scalar_model_is_plain_transformers(name: str, layout: Any) -> None:
    auto = AutoModelForSequenceClassification
    reference, model = (network(GOOD[name], auto) for _ in range(2))
    model = ScalarHeadModel(model, layout)
    # Transformers reads one position only, that of the last token: each prefix gives one more.
    expected = torch.cat(
        [
            reference(input_ids=ids[None, : t + 1], attention_mask=torch.ones(1, t + 1)).logits[0]
            for ids in IDS.clamp_min(3).split(LENGTHS.tolist())
            for t in range(len(ids))
        ]
    )
    found = model(IDS.clamp_min(3), LENGTHS)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradients(model.hf, found, reference, expected)


@pytest.mark.parametrize("name", list(GOOD))
def test_a_neighbour_changes_nothing(name: str) -> None:
    model = CausalModel(network(GOOD[name]))
    bounds = [0, *LENGTHS.cumsum(0).tolist()]
    everything = torch.ones(21, dtype=torch.bool)
    with torch.no_grad():
        before, _ = model(IDS, LENGTHS, everything, 1.0, False)
        for row in range(4):
            here = slice(bounds[row], bounds[row + 1])
            other = IDS.clone()
            other[here] = (other[here] + 17) % VOCAB
            after, _ = model(other, LENGTHS, everything, 1.0, False)
            outside = torch.ones(21, dtype=torch.bool)
            outside[here] = False
            torch.testing.assert_close(after[outside], before[outside], rtol=0, atol=1e-6)
            assert row == 1 or (after[here] - before[here]).abs().max() > 0.1


def test_only_wanted_tokens_meet_the_output_layer() -> None:
    model = CausalModel(network(GOOD["llama, tied"]))
    seen: list[tuple[int, ...]] = []
    model.hf.lm_head.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    model(IDS, LENGTHS, WANTED, 1.0, False)
    firsts = torch.zeros(21, dtype=torch.bool)
    firsts[[0, 7, 8, 12]] = True
    assert seen == [(int((WANTED & ~firsts).sum()), 32)]
    found, _ = model(IDS, LENGTHS, torch.zeros(21, dtype=torch.bool), 1.0, False)
    assert not found.any()


@pytest.mark.parametrize("why", list(UNPACKABLE))
def test_what_cannot_be_packed_is_refused_and_padding_is_right(why: str) -> None:
    with pytest.raises(ConfigError, match=f"^models.layout=packed: .*{why}.*set models.layout=padded$"):
        CausalModel(network(UNPACKABLE[why]))
    model = CausalModel(network(UNPACKABLE[why]), "padded")
    with torch.no_grad():
        expected, _ = plain(eager(UNPACKABLE[why]))
        found, _ = model(IDS, LENGTHS, torch.ones(21, dtype=torch.bool), TEMPERATURE, False)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_sequence_longer_than_the_window_is_refused_and_padding_is_right() -> None:
    narrow = config("Mistral", sliding_window=6)
    wanted = torch.ones(21, dtype=torch.bool)
    model = CausalModel(network(narrow))
    with pytest.raises(ConfigError, match="9 tokens, but its attention sees 6.; set models.layout=padded"):
        model(IDS, LENGTHS, wanted, 1.0, False)
    model(IDS[:8], torch.tensor([2, 6]), wanted[:8], 1.0, False)
    with torch.no_grad():
        expected, _ = plain(network(narrow))
        wide, _ = plain(network(config("Mistral", sliding_window=None)))
        found, _ = CausalModel(network(narrow), "padded")(IDS, LENGTHS, wanted, TEMPERATURE, False)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (wide - expected).abs().max() > 0.1


def test_the_window_of_a_language_model_within_another_is_seen() -> None:
    text = {"sliding_window": 6, "layer_types": ["sliding_attention"], "num_hidden_layers": 1}
    assert attention_window(transformers.Gemma3Config(text_config=text)) == 6
    assert attention_window(config("Llama")) == float("inf")


def test_a_language_model_within_another_is_refused_beyond_its_window_and_right_within() -> None:
    text = GOOD["gemma3: capped logits, norms, its own head width"].to_dict()
    text |= {
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "final_logit_softcapping": None,
    }
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    whole = transformers.Gemma3Config(
        text_config=text, vision_config=vision | {"image_size": 28, "patch_size": 14}, mm_tokens_per_image=4,
        image_token_index=61, boi_token_index=62, eoi_token_index=63,
    )  # fmt: skip
    assert type(network(whole)).__name__ == "Gemma3ForConditionalGeneration"
    ids, wanted = IDS.repeat(2)[:30] % 60, torch.ones(30, dtype=torch.bool)
    model = CausalModel(network(whole)).train()
    with pytest.raises(ConfigError, match="30 tokens, but its attention sees 8.; set models.layout=padded$") as caught:
        model(ids, torch.tensor([30]), wanted, 1.0, False)
    assert "\n" not in str(caught.value)
    lengths, expected = torch.tensor([8, 5, 8, 8, 1]), []
    padded = CausalModel(network(whole), "padded")
    with torch.no_grad():
        for one in ids.split(lengths.tolist()):
            table = torch.log_softmax(network(whole)(input_ids=one[None], use_cache=False).logits[0], -1)
            expected += [table.new_zeros(1), table[:-1].gather(-1, one[1:, None]).squeeze(-1)]
        torch.testing.assert_close(
            model(ids, lengths, wanted, 1.0, False)[0], torch.cat(expected), rtol=1e-5, atol=1e-5
        )
        table = torch.log_softmax(network(whole)(input_ids=ids[None], use_cache=False).logits[0], -1)
        long = padded(ids, torch.tensor([30]), wanted, 1.0, False)[0]
    torch.testing.assert_close(long[1:], table[:-1].gather(-1, ids[1:, None]).squeeze(-1), rtol=1e-5, atol=1e-5)


def test_the_scaling_of_a_language_model_within_another_is_seen() -> None:
    whole = transformers.Gemma3Config(text_config={"final_logit_softcapping": 30.0})
    assert logit_scaling(whole) == LogitScaling(1.0, 30.0)
    assert logit_scaling(config("Granite", logits_scaling=4.0)) == LogitScaling(0.25, None)


def test_logits_that_are_more_than_the_head_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = transformers.LlamaForCausalLM.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = inner(self, *args, **kwargs)
        out.logits = out.logits**3
        return out

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", forward)
    for layout in ("packed", "padded"):
        with pytest.raises(ConfigError, match="LlamaForCausalLM does more to its logits"):
            CausalModel(network(GOOD["llama, tied"]), layout)


@pytest.mark.parametrize("name", list(GOOD))
def test_a_saved_model_is_a_plain_one(name: str, tmp_path: Path) -> None:
    model = CausalModel(network(GOOD[name]))
    model.hf.save_pretrained(tmp_path)
    assert "cai_dist" not in (tmp_path / "config.json").read_text()
    again, original = AutoModelForCausalLM.from_pretrained(tmp_path).eval(), network(GOOD[name])
    assert again.config._attn_implementation in ("sdpa", "eager")
    with torch.no_grad():
        assert torch.equal(again(input_ids=IDS[None]).logits, original(input_ids=IDS[None]).logits)
    names = {key for key, _ in original.named_parameters()}
    assert {key for key, _ in model.hf.named_parameters()} == names == {key for key, _ in again.named_parameters()}


def test_a_packed_model_does_not_take_rows_behind_its_back() -> None:
    model = CausalModel(network(GOOD["llama, tied"]))
    with pytest.raises(ConfigError, match="models.layout=padded"):
        model.hf(input_ids=IDS[None])


def test_rectangles_by_hand() -> None:
    """Tokens 0-6, 7, 8-11 and 12-20. Places: rows 9 and 7 of width 9 (0-17), row 4 (18-21), row 1 (22)."""
    positions = torch.cat([torch.arange(n) for n in LENGTHS.tolist()])
    packing = packed_attention.Packing.of(LENGTHS, positions)
    assert [one.width for one in packing.rectangles] == [9, 4, 1] and packing.longest == 9
    spread = [one.spread.tolist() for one in packing.rectangles]
    assert spread == [[*range(12, 21), *range(7), 6, 6], [8, 9, 10, 11], [7]]
    assert packing.gather.tolist() == [*range(9, 16), 22, *range(18, 22), *range(9)]
    assert packing.bounds.tolist() == [0, 7, 8, 12, 21] and packing.bounds.dtype == torch.int32
