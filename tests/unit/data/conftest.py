"""Small tokenizers, trained here, with the quirks that real ones have."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{%- for m in messages -%}{{ '<|start|>' + m['role'] + '\n' + m['content'] + '<|end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|start|>assistant\n' }}{%- endif -%}"
)
SPECIALS = ["<|text_end|>", "<|start|>", "<|end|>"]
CORPUS = ["Human: how do I make a paper kite?\n\nAssistant: Fold the paper (A) or (B).", "The answer is: (A)"] * 3


def byte_level(**settings: object) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 400 tokens: can say any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **settings)


@pytest.fixture(scope="session")
def chatml() -> PreTrainedTokenizerFast:
    """Ends a turn with <|end|>, which is also its padding (as in SmolLM2)."""
    ends = {"eos_token": "<|end|>", "pad_token": "<|end|>", "unk_token": "<|text_end|>", "bos_token": "<|start|>"}
    return byte_level(chat_template=CHATML, **ends)


@pytest.fixture(scope="session")
def two_ends() -> PreTrainedTokenizerFast:
    """A template that ends turns with another token than eos (as in Llama 3)."""
    return byte_level(
        chat_template=CHATML, eos_token="<|text_end|>", additional_special_tokens=["<|start|>", "<|end|>"]
    )


@pytest.fixture(scope="session")
def bare() -> PreTrainedTokenizerFast:
    """No chat template."""
    return byte_level(eos_token="<|text_end|>")


@pytest.fixture(scope="session")
def words() -> PreTrainedTokenizerFast:
    """One token a word; knows few."""
    vocabulary = ["<pad>", "<unk>", "<eos>", "<human>", "<assistant>", "(A)", "(B)", "make", "kite", "?", "no", "."]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = (
        "{%- for m in messages -%}{%- if m['role'] == 'assistant' -%}{{ '<assistant> ' + m['content'] + ' <eos> ' }}"
        "{%- else -%}{{ '<human> ' + m['content'] + ' ' }}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<assistant> ' }}{%- endif -%}"
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<eos>",
        additional_special_tokens=["<human>", "<assistant>"],
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )
