"""The turns that are put to a model: for a critique, for a revision, for a comparison (paper, sections 3.1 and 4.1).

All of them are plain turns; `data/chat.py` makes token ids of them in the way that a model expects.
"""

from __future__ import annotations

from collections.abc import Sequence

from cai_dist.constitution.draws import draw, draw_some
from cai_dist.constitution.schema import ComparisonPrinciple, Constitution, CritiquePrinciple, Templates
from cai_dist.constitution.substitute import substitute
from cai_dist.types import Turn

__all__ = [
    "comparison_text",
    "comparison_turns",
    "conversation_text",
    "critique_turns",
    "draw",
    "draw_some",
    "few_shot_turns",
    "reasoning_turns",
    "revision_turns",
]

Turns = tuple[Turn, ...]


def critique_turns(turns: Sequence[Turn], response: str, principle: CritiquePrinciple) -> Turns:
    """The conversation, the answer in its present form and the request to criticise it. Answer with role `critique`."""
    return (*turns, Turn("assistant", response), Turn("critique_request", principle.critique_request))


def revision_turns(
    turns: Sequence[Turn], response: str, principle: CritiquePrinciple, critique: str | None = None
) -> Turns:
    """The conversation with the critique and the request to rewrite. Answer with role `revision`.

    Without a critique the answer is rewritten directly (paper, section 3.5).
    """
    request = Turn("revision_request", principle.revision_request)
    if critique is None:
        return (*turns, Turn("assistant", response), request)
    return (*critique_turns(turns, response, principle), Turn("critique", critique), request)


def comparison_text(
    constitution: Constitution, turns: Sequence[Turn], principle: str, a: str, b: str, reasoning: bool = False
) -> str:
    """The multiple-choice question about two answers, in the constitution's template (with `reasoning` in the one for
    that, where it has one).

    `principle` is the principle's text. The answers are put in verbatim and in one pass: braces or option labels inside
    them mean nothing.
    """
    templates = constitution.templates
    values = {"conversation": conversation_text(templates, turns), "principle": principle, "a": a, "b": b}
    return substitute((templates.reasoning if reasoning else "") or templates.comparison, values)


def comparison_turns(
    constitution: Constitution,
    turns: Sequence[Turn],
    principle: ComparisonPrinciple,
    a: str,
    b: str,
    few_shot: int = 0,
    seed: int = 0,
    answers: tuple[str, str] = ("(A)", "(B)"),
) -> Turns:
    """`comparison_text` as one human turn, after `few_shot` worked examples that are drawn by `seed`.

    `answers` is how the examples say A and B. An example without a principle of its own draws one (paper, section 4.1:
    each few-shot example draws its own).
    """
    shown: list[Turn] = []
    pool, principles = constitution.few_shot_comparisons, constitution.comparison_principles
    for i in draw_some(seed, "few-shot comparisons", n=len(pool), k=few_shot):
        example = pool[i]
        text = example.principle or principles[draw(seed, "few-shot principle", i, n=len(principles))].text
        question = comparison_text(constitution, example.turns, text, example.a, example.b)
        shown += [Turn("human", question), Turn("assistant", answers["AB".index(example.answer)])]
    return (*shown, Turn("human", comparison_text(constitution, turns, principle.text, a, b)))


def reasoning_turns(
    constitution: Constitution,
    turns: Sequence[Turn],
    principle: ComparisonPrinciple,
    a: str,
    b: str,
    few_shot: int = 0,
    seed: int = 0,
) -> Turns:
    """The question as one human turn for a model that thinks before it answers, after `few_shot` worked examples that
    are drawn by `seed`, each under a principle drawn for it (paper, section 4.1)."""
    shown: list[Turn] = []
    pool, principles = constitution.few_shot_reasoning, constitution.comparison_principles
    for i in draw_some(seed, "few-shot reasoning", n=len(pool), k=few_shot):
        drawn = principles[draw(seed, "few-shot principle", i, n=len(principles))].text
        question, *thoughts = pool[i]
        shown += [
            Turn("human", question.text.replace("{principle}", drawn)),
            Turn("assistant", "\n\n".join(t.text for t in thoughts)),
        ]
    return (*shown, Turn("human", comparison_text(constitution, turns, principle.text, a, b, reasoning=True)))


def conversation_text(templates: Templates, turns: Sequence[Turn]) -> str:
    """The turns as text, each with its label: "Human: …", a blank line, "Assistant: …"."""
    return templates.separator.join(templates.labels.of(turn.role) + turn.text for turn in turns)


def few_shot_turns(
    constitution: Constitution, count: int, seed: int = 0, *keys: str | int, critique: bool = True
) -> Turns:
    """`count` worked critique-revision dialogues in drawn order, as turns to put before a prompt.

    Different keys draw different examples, so that a weak model has no single one to copy. `critique=False` leaves the
    critiques and the requests for them out, for direct revision.
    """
    pool = constitution.few_shot_critiques
    left_out = () if critique else ("critique_request", "critique")
    chosen = draw_some(seed, "few-shot critiques", *keys, n=len(pool), k=count)
    return tuple(turn for i in chosen for turn in pool[i] if turn.role not in left_out)
