"""The prompts published beside the paper, read as they are (five JSON files in one folder).

Quirks met there: request and answer labels are part of the strings; the comparison principles end in `Options:`; one
worked critique lacks the closing `Human:`; two worked chains of thought lack the opening blank line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cai_dist.constitution.parse import split_dialogue
from cai_dist.errors import DataError
from cai_dist.types import Speaker, Turn

CRITIQUES = "CritiqueRevisionInstructions.json"
CRITIQUE_EXAMPLES = "CritiqueRevisionFewShotPrompts.json"
COMPARISONS = "RLMadisonInstructions.json"
COMPARISON_EXAMPLES = "RLMadisonFewShotPrompts.json"
REASONING_EXAMPLES = "RLMadisonPrecogFewShotPrompts.json"
REASONING = """\
Consider the following conversation between a human and an assistant:

{conversation}

{principle}
 (A) [[[{a}]]]
 (B) [[[{b}]]]"""
"""The question that is to be thought about (2212.08073, section 4.1): the plain one without "The answer is:", in the
form of the worked examples."""

_MARKERS: dict[str, Speaker] = {
    "Human": "human",
    "Assistant": "assistant",
    "CritiqueRequest": "critique_request",
    "Critique": "critique",
    "RevisionRequest": "revision_request",
    "Revision": "revision",
}


def is_published_folder(folder: Path) -> bool:
    """Whether `folder` holds the published files."""
    return (folder / CRITIQUES).is_file()


def read_published(folder: Path, templates: dict[str, Any]) -> dict[str, Any]:
    """The five files as plain data in the form of our YAML, with `templates` added, but for the question that is to be
    thought about: that one is asked as the worked examples ask it.

    Raises DataError, naming file and entry, where a file is missing or not as published.
    """
    return {
        "name": "published",
        "version": "1",
        "critique_principles": _critique_principles(folder / CRITIQUES),
        "comparison_principles": _comparison_principles(folder / COMPARISONS),
        "templates": {**templates, "reasoning": REASONING},
        "few_shot_critiques": _critique_examples(folder / CRITIQUE_EXAMPLES),
        "few_shot_comparisons": _comparison_examples(folder / COMPARISON_EXAMPLES),
        "few_shot_reasoning": _reasoning_examples(folder / REASONING_EXAMPLES),
    }


def _critique_principles(path: Path) -> list[dict[str, str]]:
    entries = _read(path, dict)
    principles = []
    for name, entry in entries.items():
        try:
            [critique], revision = entry["prompt"], entry["edit_request"]
            requests = {
                "critique_request": _between(critique, "CritiqueRequest:", "Critique:"),
                "revision_request": _between(revision, "RevisionRequest:", "Revision:"),
            }
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: entry {name!r} is not in the published form ({_one_line(error)})") from None
        principles.append({"id": name, **requests})
    return principles


def _comparison_principles(path: Path) -> list[dict[str, str]]:
    principles = []
    for i, text in enumerate(_read(path, list)):
        if not isinstance(text, str) or not text.rstrip().endswith("Options:"):
            raise DataError(f"{path}: entry {i} must be a text that ends in 'Options:'")
        principles.append({"id": f"comparison{i}", "text": text.rstrip().removesuffix("Options:").strip()})
    return principles


def _critique_examples(path: Path) -> list[list[dict[str, str]]]:
    return [_turns(path, i, text) for i, text in enumerate(_read(path, list))]


def _comparison_examples(path: Path) -> list[dict[str, Any]]:
    examples = []
    for i, entry in enumerate(_read(path, list)):
        try:
            prompt, good, bad = entry["prompt"], entry["corrects"][0], entry["incorrects"][0]
        except (KeyError, TypeError, IndexError) as error:
            raise DataError(f"{path}: entry {i} lacks prompt, corrects or incorrects ({_one_line(error)})") from None
        if not all(isinstance(text, str) for text in (prompt, good, bad)):
            raise DataError(f"{path}: entry {i}: prompt, corrects and incorrects must be texts")
        good_is_a = i % 2 == 0  # neither letter must be the better guess
        a, b = (good, bad) if good_is_a else (bad, good)
        answer = "A" if good_is_a else "B"
        examples.append({"turns": _turns(path, i, prompt), "a": a.strip(), "b": b.strip(), "answer": answer})
    return examples


def _reasoning_examples(path: Path) -> list[list[dict[str, str]]]:
    examples = []
    for i, entry in enumerate(_read(path, list)):
        text = entry.get("prompt") if isinstance(entry, dict) else None
        if not isinstance(text, str) or text.count("{}") != 1:
            raise DataError(f"{path}: entry {i} must have a prompt with one {{}} for the principle")
        examples.append(_turns(path, i, text.replace("{}", "{principle}")))
    return examples


def _turns(path: Path, i: int, text: object) -> list[dict[str, str]]:
    """A worked dialogue as turns; an empty turn at the end (an opened label) is left out."""
    if not isinstance(text, str):
        raise DataError(f"{path}: entry {i} must be a text")
    turns: list[Turn] = split_dialogue(text, _MARKERS)
    if turns and not turns[-1].text:
        turns.pop()
    if not turns or any(not turn.text for turn in turns):
        raise DataError(f"{path}: entry {i} is not a dialogue with the labels {', '.join(_MARKERS)}")
    return [{"role": turn.role, "text": turn.text} for turn in turns]


def _between(text: object, before: str, after: str) -> str:
    """The text between two labels. Raises ValueError where they are not there."""
    if not isinstance(text, str):
        raise ValueError("must be a text")
    text = text.strip()
    if not (text.startswith(before) and text.endswith(after)):
        raise ValueError(f"must start with {before!r} and end with {after!r}")
    return text.removeprefix(before).removesuffix(after).strip()


def _read(path: Path, kind: type) -> Any:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: the published constitution consists of five files; this one is missing") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {_one_line(error)}") from None
    if not isinstance(data, kind):
        raise DataError(f"{path}: expected a JSON {'object' if kind is dict else 'array'} at the top")
    return data


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
