"""Chat templates of model families: each as short as it can be with the marks, the order of turns and the switches of
the real one (told again here, not copied), and a tokenizer of characters with the family's special tokens."""

# ruff: noqa: E501

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Family:
    """One family. `before` is what a template has between the words of a human and an answer, `end` the token behind it;
    `ends` those that generation_config.json names. `system`: `kept` or `folded`. `date`: as the template shows the 2nd
    of March 2026, "" where it does not ask."""

    name: str
    template: str
    special: tuple[str, ...]
    eos: str
    before: str
    end: str
    bos: str = ""
    added: tuple[str, ...] = ()
    """Added tokens that are not special, such as </think> of Qwen."""
    ends: tuple[str, ...] = ()
    adds_bos: bool = False
    """Whether the tokenizer puts bos in front of a text by itself."""
    spaced: bool = False
    """SentencePiece: words bring their space, and a text gets one in front."""
    system: str = "kept"
    date: str = ""
    generation: str = ""
    """What the template writes where a model is to go on by itself, where that is not `before`."""
    texts: tuple[str, ...] = ()
    """Marks that are words to the tokenizer, such as [/INST] of Llama 2."""
    arguments: tuple[tuple[str, bool], ...] = ()
    refused: str = ""


SYSTEM_FIRST = "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}{% set turns = messages[1:] %}"
SYSTEM_FIRST += "{% else %}{% set s = '' %}{% set turns = messages %}{% endif %}"
ALTERNATE = "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
ALTERNATE += "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}{% endfor %}"
NO_THOUGHTS = "{% set c = m.content.split('</think>')[-1].lstrip('\\n') %}"
LAST_USER = "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
LAST_USER += "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"


def chatml(before: str = "", opened: str = "", default: str = "", end: str = "<|im_end|>\n") -> str:
    """Turns between <|im_start|> and <|im_end|>; `before`: in front of an answer's words, `opened`: where a model is to
    go on; `default`: a system turn where none is given."""
    found = "{% if messages[0].role != 'system' %}{{ '" + default + "' }}{% endif %}" if default else ""
    found += "{% set calls = '<tool_call></tool_call>' %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    found += "{% if m.role == 'assistant' %}" + before + "{% else %}{{ m.content }}{% endif %}{{ '" + end + "' }}"
    found += "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}" + opened + "{% endif %}"
    return found


LLAMA3 = (
    "{{ bos_token }}DATE{% if messages[0].role == 'system' %}{% set s = messages[0].content|trim %}"
    "{% set turns = messages[1:] %}{% else %}{% set s = '' %}{% set turns = messages %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: ' "
    "+ date_string + '\n\n' + s + '<|eot_id|>' }}{% for m in turns %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content|trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA3_SPECIAL = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
)
LLAMA3_BEFORE = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
CLOCK = "{% if not date_string is defined %}{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
CLOCK += "{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}"
FIXED = "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}"
INST = (
    "{{ bos_token }}" + SYSTEM_FIRST + ALTERNATE + "{% for m in turns %}{% if m.role == 'user' %}"
    "{{ '[INST] ' }}{% if s and FIRST_OR_LAST %}{{ SYSTEM }}{% endif %}{{ m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + 'GAP' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA2 = INST.replace("FIRST_OR_LAST", "loop.first").replace("SYSTEM }}", "'<<SYS>>\n' + s + '\n<</SYS>>\n\n' }}")
MISTRAL = INST.replace("FIRST_OR_LAST", "loop.last").replace("SYSTEM }}", "s + '\n\n' }}").replace("GAP", "")
DEEPSEEK = (
    "{% set ns = namespace(s='') %}{% for m in messages %}{% if m.role == 'system' %}{% set ns.s = m.content %}{% endif %}"
    "{% endfor %}{{ bos_token + ns.s }}{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
    "{% elif m.role == 'assistant' %}{{ '<｜Assistant｜>HISTORY' + m.content.split('</think>')[-1] "
    "+ '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}OPENED{% endif %}"
)
DEEPSEEK_SPECIAL = (
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜tool▁calls▁begin｜>",
)
IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_BEFORE = "<|im_end|>\n<|im_start|>assistant\n"
EMPTY = "<think>\n\n</think>\n\n"
QWEN3_ANSWER = NO_THOUGHTS + "{% if loop.index0 > ns.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ c }}"
QWEN3_OPENED = (
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)
QWEN35_OPENED = QWEN3_OPENED.replace("{% endif %}", "{% else %}{{ '<think>\n' }}{% endif %}")
GLM = (
    "{{ '[gMASK]<sop>' }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ '<|assistant|>\nHISTORY' + m.content.split('</think>')[-1].strip() }}"
    "{% else %}{{ '<|' + m.role + '|>\n' + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}OPENED{% endif %}"
)
GLM_SPECIAL = ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
COHERE = (
    "{{ bos_token }}" + SYSTEM_FIRST + "{% if s %}{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + s "
    "+ '<|END_OF_TURN_TOKEN|>' }}{% endif %}{% for m in turns %}{% if m.role == 'user' %}"
    "{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + m.content + '<|END_OF_TURN_TOKEN|>' }}{% else %}"
    "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>OPENS' + m.content + 'CLOSES<|END_OF_TURN_TOKEN|>' }}{% endif %}"
    "{% endfor %}ALWAYS"
)
COHERE_SPECIAL = (
    *("<PAD>", "<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>"),
    *("<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"),
)
GEMMA_TURNS = (
    "{% for m in turns %}{% set r = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + r + '\n' + (s + '\n\n' if s and loop.first else '') + m.content|trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA_SPECIAL = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
MAGES = "{% for m in messages %}"

FAMILIES = (
    Family("Llama 3.1", LLAMA3.replace("DATE", FIXED), LLAMA3_SPECIAL, "<|eot_id|>", LLAMA3_BEFORE, "<|eot_id|>",
           bos="<|begin_of_text|>", ends=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"), adds_bos=True),
    Family("Llama 3.2", LLAMA3.replace("DATE", CLOCK), LLAMA3_SPECIAL, "<|eot_id|>", LLAMA3_BEFORE, "<|eot_id|>",
           bos="<|begin_of_text|>", ends=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"), adds_bos=True,
           date="02 Mar 2026"),
    Family("Llama 2", LLAMA2.replace("GAP", " "), ("<unk>", "<s>", "</s>"), "</s>", " [/INST] ", "</s>", bos="<s>",
           adds_bos=True, spaced=True, texts=("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"), generation=" [/INST]"),
    Family("Mistral 7B", MISTRAL, ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"), "</s>", " [/INST] ", "</s>",
           bos="<s>", adds_bos=True, spaced=True, generation=" [/INST]", system="folded"),
    Family("Mistral Small 3",
           "{% set today = strftime_now('%Y-%m-%d') %}{{ bos_token }}" + SYSTEM_FIRST + ALTERNATE +
           "{{ '[SYSTEM_PROMPT]' + (s or 'The current date is ' + today + '.') + '[/SYSTEM_PROMPT]' }}"
           "{% for m in turns %}{% if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}{% else %}"
           "{{ m.content + eos_token }}{% endif %}{% endfor %}",
           ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CALLS]"), "</s>",
           "[/INST]", "</s>", bos="<s>", adds_bos=True, date="2026-03-02"),
    Family("Gemma 2",
           "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
           "{% endif %}{% set s = '' %}{% set turns = messages %}" + ALTERNATE + GEMMA_TURNS,
           GEMMA_SPECIAL, "<eos>", "<end_of_turn>\n<start_of_turn>model\n", "<end_of_turn>", bos="<bos>",
           ends=("<eos>", "<end_of_turn>"), adds_bos=True, system="folded"),
    Family("Gemma 3", "{{ bos_token }}" + SYSTEM_FIRST + ALTERNATE + GEMMA_TURNS, GEMMA_SPECIAL, "<eos>",
           "<end_of_turn>\n<start_of_turn>model\n", "<end_of_turn>", bos="<bos>", ends=("<eos>", "<end_of_turn>"),
           adds_bos=True, system="folded"),
    Family("Gemma 4",
           "{{ bos_token }}" + MAGES + "{% set r = 'model' if m.role == 'assistant' else m.role %}"
           "{{ '<|turn>' + r + '\n' }}{{ m.content.split('<channel|>')[-1]|trim }}{{ '<turn|>\n' }}{% endfor %}"
           "{% if add_generation_prompt %}{{ '<|turn>model\n' }}{% if not enable_thinking|default(false) %}"
           "{{ '<|channel>thought\n<channel|>' }}{% endif %}{% endif %}",
           ("<pad>", "<eos>", "<bos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>"), "<turn|>",
           "<turn|>\n<|turn>model\n<|channel>thought\n<channel|>", "<turn|>", bos="<bos>", ends=("<eos>", "<turn|>"),
           adds_bos=True),
    Family("Phi 3", MAGES + "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
           "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
           ("<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
           "<|endoftext|>", "<|end|>\n<|assistant|>\n", "<|end|>", bos="<s>",
           ends=("<|endoftext|>", "<|assistant|>", "<|end|>")),
    Family("Phi 4", MAGES + "{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}"
           "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}",
           (*IM, "<|im_sep|>"), "<|im_end|>", "<|im_end|><|im_start|>assistant<|im_sep|>", "<|im_end|>",
           bos="<|endoftext|>", ends=("<|endoftext|>", "<|im_end|>")),
    Family("ChatML (Hermes, Yi)", chatml("{{ m.content }}"), IM, "<|im_end|>", QWEN_BEFORE, "<|im_end|>"),
    Family("Qwen 2.5", chatml("{{ m.content }}", default="<|im_start|>system\nYou are Qwen.<|im_end|>\n"), IM,
           "<|im_end|>", QWEN_BEFORE, "<|im_end|>", added=("<tool_call>", "</tool_call>", "<h1>"),
           ends=("<|im_end|>", "<|endoftext|>")),
    Family("Qwen 3", LAST_USER + chatml(QWEN3_ANSWER, QWEN3_OPENED), IM, "<|im_end|>", QWEN_BEFORE + EMPTY, "<|im_end|>",
           added=("<think>", "</think>", "<tool_call>"), ends=("<|im_end|>", "<|endoftext|>"), generation=QWEN_BEFORE),
    Family("Qwen 3 told not to think", LAST_USER + chatml(QWEN3_ANSWER, QWEN3_OPENED), IM, "<|im_end|>",
           QWEN_BEFORE + EMPTY, "<|im_end|>", added=("<think>", "</think>", "<tool_call>"),
           ends=("<|im_end|>", "<|endoftext|>"), arguments=(("enable_thinking", False),)),
    Family("Qwen 3.5", LAST_USER + chatml(QWEN3_ANSWER, QWEN35_OPENED), IM, "<|im_end|>", QWEN_BEFORE + EMPTY,
           "<|im_end|>", added=("<think>", "</think>"), ends=("<|im_end|>", "<|endoftext|>"),
           generation=QWEN_BEFORE + "<think>\n"),
    Family("QwQ", chatml(NO_THOUGHTS + "{{ c }}", "{{ '<think>\n' }}"), IM, "<|im_end|>", QWEN_BEFORE, "<|im_end|>",
           added=("<think>", "</think>"), ends=("<|im_end|>", "<|endoftext|>"), generation=QWEN_BEFORE + "<think>\n"),
    Family("Nemotron 3", chatml(NO_THOUGHTS + "{{ '<think></think>' + c }}",
                                "{% if enable_thinking|default(true) %}{{ '<think>\n' }}{% else %}"
                                "{{ '<think></think>' }}{% endif %}"),
           IM, "<|im_end|>", QWEN_BEFORE + "<think></think>", "<|im_end|>", added=("<think>", "</think>"),
           generation=QWEN_BEFORE + "<think>\n"),
    Family("Nemotron Nano 2",
           MAGES + "{{ '<SPECIAL_11>' + m.role + '\n' }}{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n' }}"
           "{% endif %}{{ m.content + '\n<SPECIAL_12>\n' }}{% endfor %}{% if add_generation_prompt %}"
           "{{ '<SPECIAL_11>assistant\n<think>\n\n' }}{% endif %}",
           ("<unk>", "<s>", "</s>", "<SPECIAL_11>", "<SPECIAL_12>"), "<SPECIAL_12>", "", "", added=("<think>", "</think>"),
           refused="puts answers inside thoughts"),
    Family("SmolLM3",
           "{% set today = strftime_now('%d %B %Y') %}" + LAST_USER +
           "{{ '<|im_start|>system\n## Metadata\nToday Date: ' + today + '\n\n' }}{% if messages[0].role == 'system' %}"
           "{{ messages[0].content }}{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}"
           "{{ '<|im_end|>\n' }}{% for m in turns %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
           "{{ '<think>\n\n</think>\n' + m.content.lstrip('\n') }}{% else %}{{ m.content }}{% endif %}"
           "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
           IM, "<|im_end|>", QWEN_BEFORE + "<think>\n\n</think>\n", "<|im_end|>", added=("<think>", "</think>"),
           date="02 March 2026", generation=QWEN_BEFORE),
    Family("Command R", COHERE.replace("OPENS", "").replace("CLOSES", "").replace(
        "ALWAYS", "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"),
        COHERE_SPECIAL, "<|END_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>", bos="<BOS_TOKEN>", adds_bos=True),
    Family("Command R7B", COHERE.replace("OPENS", "<|START_RESPONSE|>").replace("CLOSES", "<|END_RESPONSE|>").replace(
        "ALWAYS", "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}"),
        (*COHERE_SPECIAL, "<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_THINKING|>", "<|END_THINKING|>"),
        "<|END_OF_TURN_TOKEN|>",
        "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>", "<|END_RESPONSE|>",
        bos="<BOS_TOKEN>", adds_bos=True,
        generation="<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"),
    Family("GLM 4", GLM.replace("HISTORY", "").replace("OPENED", ""), GLM_SPECIAL, "<|endoftext|>",
           "<|assistant|>\n", "<|user|>", ends=("<|endoftext|>", "<|user|>", "<|observation|>"),
           generation="<|assistant|>"),
    Family("GLM 4.5", GLM.replace("HISTORY", "<think></think>\n").replace(
        "OPENED", "{% if enable_thinking is defined and not enable_thinking %}{{ '\n<think></think>' }}{% endif %}"),
        GLM_SPECIAL, "<|endoftext|>", "<|assistant|>\n<think></think>\n", "<|user|>", added=("<think>", "</think>"),
        ends=("<|endoftext|>", "<|user|>", "<|observation|>"), generation="<|assistant|>"),
    Family("DeepSeek V2.5", DEEPSEEK.replace("HISTORY", "").replace("OPENED", ""), DEEPSEEK_SPECIAL,
           "<｜end▁of▁sentence｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", bos="<｜begin▁of▁sentence｜>", adds_bos=True),
    Family("DeepSeek V3.1", DEEPSEEK.replace("HISTORY", "</think>").replace(
        "OPENED", "{{ '<think>' if thinking|default(false) else '</think>' }}"), DEEPSEEK_SPECIAL,
        "<｜end▁of▁sentence｜>", "<｜Assistant｜></think>", "<｜end▁of▁sentence｜>", bos="<｜begin▁of▁sentence｜>", adds_bos=True,
        added=("<think>", "</think>")),
    Family("DeepSeek R1 distils", DEEPSEEK.replace("HISTORY", "").replace("OPENED", "{{ '<think>\n' }}"),
           DEEPSEEK_SPECIAL, "<｜end▁of▁sentence｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", bos="<｜begin▁of▁sentence｜>",
           adds_bos=True, added=("<think>", "</think>"), generation="<｜Assistant｜><think>\n"),
    Family("gpt-oss",
           "{{ '<|start|>system<|message|>You are ChatGPT.\nCurrent date: ' + strftime_now('%Y-%m-%d') + '<|end|>' }}" +
           SYSTEM_FIRST + "{% if s %}{{ '<|start|>developer<|message|># Instructions\n\n' + s + '<|end|>' }}{% endif %}"
           "{% for m in turns %}{% if m.role == 'assistant' %}{% if '<|channel|>final<|message|>' in m.content %}"
           "{{ raise_exception('channel tags in the content') }}{% endif %}"
           "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
           "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{% elif m.role == 'user' %}"
           "{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
           "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}",
           ("<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>", "<|start|>", "<|end|>",
            "<|message|>", "<|call|>"),
           "<|return|>", "<|end|><|start|>assistant<|channel|>final<|message|>", "<|return|>", bos="<|startoftext|>",
           ends=("<|return|>", "<|endoftext|>", "<|call|>"), date="2026-03-02",
           generation="<|end|><|start|>assistant"),
    Family("Granite 3.3",
           SYSTEM_FIRST + "{% if not s %}{% set s = 'Knowledge Cutoff Date: April 2024.\nToday\\'s Date: ' "
           "+ strftime_now('%B %d, %Y') + '.' %}{% endif %}"
           "{{ '<|start_of_role|>system<|end_of_role|>' + s + '<|end_of_text|>\n' }}{% for m in turns %}"
           "{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\n' }}{% endfor %}"
           "{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}",
           ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"), "<|end_of_text|>",
           "<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>", "<|end_of_text|>", date="March 02, 2026"),
    Family("Zephyr", MAGES + "{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
           "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}", ("<unk>", "<s>", "</s>"), "</s>",
           "</s>\n<|assistant|>\n", "</s>", bos="<s>", adds_bos=True, spaced=True,
           texts=("<|user|>", "<|assistant|>", "<|system|>")),
    Family("Vicuna",
           "{{ bos_token }}" + SYSTEM_FIRST + "{{ s or 'A chat between a curious user and an assistant.' }}"
           "{% for m in turns %}{% if m.role == 'user' %}{{ ' USER: ' + m.content }}{% else %}"
           "{{ ' ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}"
           "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}", ("<unk>", "<s>", "</s>"), "</s>",
           " ASSISTANT: ", "</s>", bos="<s>", adds_bos=True, spaced=True, generation=" ASSISTANT:"),
    Family("OLMo 2", "{{ bos_token }}" + MAGES + "{{ '<|' + m.role + '|>\n' + m.content }}"
           "{{ eos_token if m.role == 'assistant' else '' }}{{ '' if loop.last and m.role == 'assistant' else '\n' }}"
           "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
           ("<|endoftext|>", "<|pad|>"), "<|endoftext|>", "\n<|assistant|>\n", "<|endoftext|>", bos="<|endoftext|>",
           texts=("<|user|>", "<|assistant|>", "<|system|>")),
    Family("Seed-OSS", MAGES + "{{ '<seed:bos>' + m.role + '\n' + m.content + '<seed:eos>' }}{% endfor %}"
           "{% set think = '<seed:think></seed:think>' %}"
           "{% if add_generation_prompt %}{{ '<seed:bos>assistant\n' }}{% endif %}",
           ("<seed:bos>", "<seed:eos>", "<seed:pad>"), "<seed:eos>", "<seed:eos><seed:bos>assistant\n", "<seed:eos>",
           bos="<seed:bos>", added=("<seed:think>", "</seed:think>")),
    Family("Kimi K2",
           "{% if messages[0].role != 'system' %}{{ '<|im_system|>system<|im_middle|>You are Kimi.<|im_end|>' }}{% endif %}"
           + MAGES + "{{ '<|im_' + m.role + '|>' + m.role + '<|im_middle|>' + m.content + '<|im_end|>' }}{% endfor %}"
           "{% if add_generation_prompt %}{{ '<|im_assistant|>assistant<|im_middle|>' }}{% endif %}",
           ("[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>"),
           "<|im_end|>", "<|im_end|><|im_assistant|>assistant<|im_middle|>", "<|im_end|>", bos="[BOS]",
           ends=("<|im_end|>",)),
    Family("Falcon", MAGES + "{% if not loop.first %}{{ '\n' }}{% endif %}"
           "{{ {'user': 'User: ', 'assistant': 'Assistant: '}[m.role] + m.content }}{% endfor %}"
           "{% if add_generation_prompt %}{{ '\nAssistant:' }}{% endif %}",
           ("<|endoftext|>",), "<|endoftext|>", "\nAssistant: ", "<|endoftext|>", system="folded",
           generation="\nAssistant:"),
)  # fmt: skip


@cache
def tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """One token for a byte (or a character, where the family is `spaced`), the family's special and added tokens."""
    made = _spaced() if family.spaced else _bytes()
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in family.special])
    made.add_tokens([AddedToken(t, special=False, normalized=False) for t in family.added])
    if family.adds_bos:
        bos = (family.bos, made.token_to_id(family.bos))
        made.post_processor = processors.TemplateProcessing(single=f"{family.bos}:0 $A:0", special_tokens=[bos])
    named = {"bos_token": family.bos} if family.bos else {}
    named |= {"unk_token": "<unk>"} if "<unk>" in family.special else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=family.eos, chat_template=family.template, clean_up_tokenization_spaces=False,
        **named,
    )  # fmt: skip


def _bytes() -> Tokenizer:
    made = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def _spaced() -> Tokenizer:
    known = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *(chr(i) for i in range(33, 127))]
    made = Tokenizer(models.BPE({c: i for i, c in enumerate(known)}, [], unk_token="<unk>", byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made
