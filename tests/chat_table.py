"""A tokenizer of numbered words for the tiny models of tests, and the table of prompts that goes with it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from cai_dist.constitution import Labels
from cai_dist.types import Prompt, Turn
from cai_dist.workers.prompt_table import PromptTable
from cai_dist.world.tokenizer import CHAT_TEMPLATE
from tests.tiny import END, VOCAB

HUMAN, ASSISTANT = 3, 4


def save_tokenizer(folder: Path) -> str:
    """Words `w5`, `w6`, ... with their ids as numbers; conversations as the micro-world has them."""
    names = {0: "<pad>", 1: "<unk>", END: "<eos>", HUMAN: "<human>", ASSISTANT: "<assistant>"}
    backend = Tokenizer(WordLevel({names.get(i, f"w{i}"): i for i in range(VOCAB)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>",
        additional_special_tokens=["<human>", "<assistant>"], clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return str(folder)


def table(folder: Path, prompts: Iterable[tuple[int, ...]], context: int = 128) -> PromptTable:
    """Prompts of any ids; their words are those ids."""
    told = {
        ids: Prompt(f"p{n}", (Turn("human", " ".join(f"w{i}" for i in ids)),), "red_team")
        for n, ids in enumerate(prompts)
    }
    return PromptTable(told, save_tokenizer(folder), "template", Labels(), {}, "2026-03-02", context)
