"""Texts spell no mark, and are else as they were."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers
from transformers import PreTrainedTokenizerFast

from cai_dist.data.chat import ChatFormat
from cai_dist.data.marks import Marks
from cai_dist.types import Turn
from tests.unit.data.chat_families import FAMILIES, tokenizer

FAMILY = {family.name: family for family in FAMILIES}


def marks_of(name: str) -> Marks:
    """As the format of the family's template has them."""
    family = FAMILY[name]
    return ChatFormat(tokenizer(family), arguments=dict(family.arguments))._marks


@pytest.mark.parametrize(
    ("name", "text", "harmless"),
    [
        ("Llama 3.1", "a <|start_header_id|>b", "a < |start_header_id|>b"),
        ("Llama 3.1", "a <|python_tag|>b", "a < |python_tag|>b"),
        ("gpt-oss", "<|constrain|><|call|>", "< |constrain|>< |call|>"),
        ("Phi 3", "<|system|>\n", "< |system|>\n"),
        ("Llama 2", "x [/INST] y <</SYS>>", "x [ /INST] y < </SYS>>"),
        ("Zephyr", "<|user|>", "< |user|>"),
        ("Qwen 3", "a</think>b <tool_call>", "a< /think>b < tool_call>"),
        ("Qwen 2.5", "<h1>Kites</h1>", "<h1>Kites</h1>"),
        ("Qwen 2.5", "<|<|im_end|>im_end|>", "<|< |im_end|>im_end|>"),
        ("Vicuna", "USER: a ASSISTANT: b", "USER: a ASSISTANT: b"),
        ("Falcon", "User: a [INST] <|user|>", "User: a [INST] <|user|>"),
        ("DeepSeek V3.1", "<｜User｜>", "< ｜User｜>"),
    ],
)
def test_a_mark_is_broken_by_one_space(name: str, text: str, harmless: str) -> None:
    """Special tokens of any name, added tokens that the template speaks of, bracketed words of its own; no others."""
    assert marks_of(name).harmless(text) == harmless


def test_a_token_that_no_turn_shows_is_broken_up_by_one_space() -> None:
    """It is special, and has no name."""
    assert marks_of("Llama 3.1").harmless("a <|python_tag|>b") == "a < |python_tag|>b"


def test_no_mark_comes_about_by_the_tokenizers_normalisation() -> None:
    """A tokenizer that folds full-width letters makes a token of what is not spelled like one."""
    family = FAMILY["Phi 4"]
    copied = Tokenizer.from_str(tokenizer(family).backend_tokenizer.to_str())
    made = PreTrainedTokenizerFast(tokenizer_object=copied, eos_token="<|im_end|>", chat_template=family.template)
    backend = made.backend_tokenizer
    backend.normalizer = normalizers.NFKC()
    backend.add_special_tokens([AddedToken("<|x|>", special=True, normalized=True)])
    wide = "a ＜｜x｜＞ b"
    number = backend.token_to_id("<|x|>")
    assert number in made(wide, add_special_tokens=False)["input_ids"]
    chat = ChatFormat(made)
    ids = chat.example((Turn("human", wide),), wide).ids
    assert number not in ids
    assert chat._marks.harmless("ｂ fine") == "ｂ fine"


def test_an_end_that_is_no_special_token_is_one_all_the_same() -> None:
    """<|im_end|> added by somebody who forgot to call it special: it ends answers and is no part of their words."""
    family = FAMILY["ChatML (Hermes, Yi)"]
    careless = type(family)(
        "careless", family.template, ("<|endoftext|>",), "<|endoftext|>", family.before, "<|im_end|>",
        added=("<|im_start|>", "<|im_end|>"),
    )  # fmt: skip
    chat = ChatFormat(tokenizer(careless))
    prompt, example = chat.prompt_ids((Turn("human", "Hi?"),)), chat.example((Turn("human", "Hi?"),), "Yes.")
    assert chat.eos_id == tokenizer(careless).convert_tokens_to_ids("<|im_end|>") and chat.eos_id in chat.stop_ids
    assert chat.response_text(example.ids[len(prompt) :]) == "Yes."
