"""Makes docs/templates.md from what is found with `chat_families`: `python -m tests.unit.data.templates_page`."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from cai_dist.data.chat import ChatFormat
from cai_dist.errors import ConfigError
from cai_dist.types import Turn
from tests.unit.data.chat_families import FAMILIES, Family, tokenizer

PAGE = Path(__file__).parents[3] / "docs" / "templates.md"
DAY = date(2026, 3, 2)
HEAD = """# Chat templates

What the project finds out about a model's chat template when it first meets it (in `prepare`, before anything is
made), for {n} templates of model families. The templates of the tests are short re-tellings of the real ones with the
same marks, order of turns and switches; the tokenizers have the families' special tokens and single characters. The
table is made by `python -m tests.unit.data.templates_page`, and `tests/unit/data/test_templates.py` compares it.

- **Generation begins** is what the template writes behind a human's words where a model is to go on by itself. **An
  answer begins** is what it writes there for `[user, assistant "Yes."]`. Prompts of every stage (rollouts, SFT,
  preference model, DPO, label questions, evaluation) end where an answer begins, so that what is sampled, trained and
  scored has the same ids. Where the two differ, reasoning models answer without thinking aloud, as with
  `enable_thinking: false`: serve the trained model that way. Where generation begins behind closed thoughts and
  answers of old are shown without them (Gemma 4), the place where generation begins is used.
- **Ends**: the token that training puts behind an answer, and further stops: the tokenizer's end of text and
  `eos_token_id` of generation_config.json and config.json, as far as they are special tokens.
- **Marks**: how many texts are broken up by a space in users' and models' words: special tokens, named or not; added
  tokens that the template speaks of; bracketed words that are no tokens (`[/INST]` of Llama 2). Words without
  brackets, such as `USER:`, are not.
- **System**: `kept` as a system turn where it comes first; `kept, later, too`: anywhere; else it opens the next human
  turn.
- **Date**: what the template shows on 2 March 2026. A run has one day: `date` in `manifest.json`, or
  `models.chat_date`.

`models.chat_arguments` are given to the template of every model, such as `{{enable_thinking: false}}`. What the
project cannot use is refused in one line: a template that fails, whatever it raises; one that leaves out the words of
a human or of the assistant; one that puts answers inside thoughts that it does not close.

Thoughts that a model writes all the same, at the beginning of an answer and between the marks of its tokenizer or
template, are cut off before the answer is criticised, revised, compared, scored, rewarded or judged. They stay in the
column `thoughts` of the shards of every generation and of `revise/revisions.parquet`, and in PPO's transcripts. An
answer that was not reached within `max_new_tokens` is empty: that is warned of, and PPO scores it as an empty answer.

| template | generation begins | an answer begins | ends | marks | system | date |
|---|---|---|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    return HEAD.format(n=len(FAMILIES)) + "".join(_row(family) for family in FAMILIES)


def _row(family: Family) -> str:
    made = tokenizer(family)
    name = family.name + "".join(f", `{key}: {str(value).lower()}`" for key, value in family.arguments)
    try:
        ends = [made.convert_tokens_to_ids(token) for token in family.ends]
        chat = ChatFormat(made, arguments=dict(family.arguments), ends=ends, day=DAY)
    except ConfigError as error:
        return f"| {name} | | refused: {_words(str(error).partition(' of this model ')[2])} | | | | |\n"
    template = chat._template
    assert template is not None
    generation = template.render([{"role": "user", "content": "Hi?"}], open_answer=True).rpartition("Hi?")[2]
    answer = template.before_answer + template.gap
    first, *more = [str(made.convert_ids_to_tokens(i)) for i in chat.stop_ids]
    stops = _code(first) + (f"; stops: {', '.join(map(_code, more))}" if more else "")
    spelled = sum(chat._marks.harmless(mark) != mark for mark in (*family.special, *family.added, *family.texts))
    system = "opens the next human turn"
    if template.system and "Be kind.\n\nHi?" not in template.render(_SYSTEM, open_answer=True):
        system = "kept, later, too" if template.later_system else "kept"
    shown = made.decode(list(chat.prompt_ids((Turn("human", "Hi?"),))))
    dated = family.date if family.date and family.date in shown else ""
    same = "the same" if generation == answer else _code(answer)
    return f"| {name} | {_code(generation)} | {same} | {stops} | {spelled} | {system} | {dated} |\n"


_SYSTEM = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi?"}]


def _code(text: str) -> str:
    return "`" + text.replace("\n", "⏎").replace("|", "\\|") + "`"


def _words(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
