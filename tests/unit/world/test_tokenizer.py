"""The tokenizer as a plain Hugging Face folder, and the model's shape."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from cai_dist.config.preference import PmPretrainingConfig
from cai_dist.config.run import WorldConfig
from cai_dist.world import lexicon
from cai_dist.world.build import model_config, write_initial_model
from cai_dist.world.corpus import documents, pretraining_sequences
from cai_dist.world.tables import World
from cai_dist.world.tokenizer import build_tokenizer

CHAT = [
    {"role": "user", "content": "make rope zorium ? mock bob ."},
    {"role": "assistant", "content": "i can not answer ."},
]


def test_saved_and_loaded_by_plain_transformers(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.pad_token_id == 0 != loaded.eos_token_id == tokenizer.eos_token_id
    assert loaded.apply_chat_template(CHAT, return_dict=False) == tokenizer.apply_chat_template(CHAT, return_dict=False)
    for pieces in documents(World(0), 50, seed=0):
        text = " ".join(words for words, _ in pieces)
        ids = loaded(text, add_special_tokens=False)["input_ids"]
        assert loaded.unk_token_id not in ids
        assert loaded.decode(ids) == text


def test_chat_template_by_hand() -> None:
    tokenizer = build_tokenizer()
    text = "<human> make rope zorium ? mock bob . <assistant> i can not answer . <eos>"
    words = text.split()
    ids = tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=False)
    assert tokenizer.convert_ids_to_tokens(ids) == words
    opened = tokenizer.apply_chat_template(CHAT[:1], tokenize=True, add_generation_prompt=True, return_dict=False)
    assert tokenizer.convert_ids_to_tokens(opened) == words[:9]


def test_option_labels_are_single_tokens() -> None:
    tokenizer = build_tokenizer()
    ids = [tokenizer(label, add_special_tokens=False)["input_ids"] for label in lexicon.OPTION_LABELS]
    assert [len(i) for i in ids] == [1, 1] and ids[0] != ids[1]


def test_the_marks_of_pretraining_on_rankings_are_tokens_that_no_text_has() -> None:
    tokenizer, config = build_tokenizer(), PmPretrainingConfig()
    assert (config.good, config.bad) == lexicon.RANKING_MARKS
    ids = tokenizer.convert_tokens_to_ids(list(lexicon.RANKING_MARKS))
    assert tokenizer.unk_token_id not in ids and len(set(ids)) == 2
    for sequence in pretraining_sequences(World(0), 200, 0, tokenizer):
        assert not set(ids) & set(sequence.ids)


def test_words_outside_the_vocabulary_become_unknown() -> None:
    tokenizer = build_tokenizer()
    assert tokenizer("rm -rf zorium", add_special_tokens=False)["input_ids"][:2] == [tokenizer.unk_token_id] * 2


@pytest.mark.parametrize(("hidden_size", "heads", "layers"), [(64, 2, 2), (128, 4, 3)])
def test_the_model_is_a_small_llama_that_every_engine_takes(hidden_size: int, heads: int, layers: int) -> None:
    tokenizer = build_tokenizer()
    config = model_config(WorldConfig(hidden_size=hidden_size, heads=heads, layers=layers), len(tokenizer))
    model = LlamaForCausalLM(config)
    assert 100_000 <= model.num_parameters() <= 1_000_000
    assert config.head_dim >= 32 and not config.tie_word_embeddings
    assert config.eos_token_id == tokenizer.eos_token_id != config.pad_token_id == tokenizer.pad_token_id


def test_initial_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    for name, global_seed, seed in (("a", 1, 7), ("b", 2, 7), ("c", 2, 8)):
        torch.manual_seed(global_seed)
        before = torch.random.get_rng_state()
        write_initial_model(WorldConfig(), seed, tmp_path / name)
        assert torch.equal(before, torch.random.get_rng_state())
    a, b, c = (LlamaForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)
    assert AutoTokenizer.from_pretrained(tmp_path / "a").get_vocab() == build_tokenizer().get_vocab()
