"""The word-level tokenizer of the micro-world, as an ordinary Hugging Face tokenizer with a chat template."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from cai_dist.world import lexicon

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{ '<assistant> ' + message['content'] + ' <eos> ' }}"
    "{%- else -%}"
    "{{ '<human> ' + message['content'] + ' ' }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<assistant> ' }}{%- endif -%}"
)
"""Every turn opens with its speaker; an assistant's turn ends with `<eos>`."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of one token a word (split at white space), about 170 tokens.

    `save_pretrained` writes a folder that `AutoTokenizer.from_pretrained` loads. `<eos>` ends an answer and differs
    from `<pad>` (id 0); nothing is added at the start.
    """
    vocabulary = {word: index for index, word in enumerate(lexicon.vocabulary())}
    backend = Tokenizer(WordLevel(vocabulary, unk_token=lexicon.UNK))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.decoder = None
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=lexicon.PAD,
        unk_token=lexicon.UNK,
        eos_token=lexicon.EOS,
        additional_special_tokens=[lexicon.HUMAN, lexicon.ASSISTANT],
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
