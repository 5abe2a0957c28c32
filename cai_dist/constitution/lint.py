"""Advice about a constitution that loads: what is likely not meant, one line each (`cai-dist constitution lint`).

What does not load is no advice but an error of `load_constitution`. The rules about wording are rules of thumb, see
`cai_dist.constitution.wording`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from cai_dist.constitution.schema import ComparisonPrinciple, Constitution, CritiquePrinciple, FewShotComparison
from cai_dist.constitution.substitute import slots
from cai_dist.constitution.wording import (
    asks_for_harm,
    counts_over_reaction,
    refuses_without_reason,
    similarity,
    words,
)
from cai_dist.types import Turn

Principle = CritiquePrinciple | ComparisonPrinciple
NEAR = 0.5
"""Texts with at least this similarity are near-duplicates."""
UNBALANCED = 2
"""One kind of principles with more than this many times as many as the other."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something likely not meant."""

    where: str
    """The entry, such as `comparison_principles[3] (law)`."""
    what: str
    todo: str

    def __str__(self) -> str:
        return " ".join(f"{self.where}: {self.what}; {self.todo}".split())


def lint(constitution: Constitution) -> list[Finding]:
    """All findings, in the order of the file: principles, template, worked examples."""
    return [
        *_principles(constitution),
        *_kinds(constitution),
        *_templates(constitution),
        *_worked_critiques(constitution),
        *_worked_comparisons(constitution),
        *_worked_reasoning(constitution),
    ]


def _principles(constitution: Constitution) -> Iterator[Finding]:
    kinds: list[tuple[str, Sequence[Principle]]] = [
        ("critique_principles", constitution.critique_principles),
        ("comparison_principles", constitution.comparison_principles),
    ]
    for kind, principles in kinds:
        places = [f"{kind}[{i}] ({p.id})" for i, p in enumerate(principles)]
        texts = [_whole(p) for p in principles]
        yield from _repeated(places, texts)
        for place, principle, text in zip(places, principles, texts, strict=True):
            yield from _wording(place, _wish(principle))
            if found := slots(text):
                yield Finding(
                    place,
                    f"{{{found[0]}}} is not filled in: principles are put to the model as they are",
                    "write the words themselves",
                )


def _repeated(places: Sequence[str], texts: Sequence[str]) -> Iterator[Finding]:
    for (here, one), (there, other) in combinations(zip(places, texts, strict=True), 2):
        if words(one) == words(other):
            yield Finding(there, f"says the same as {here}", "remove one: it only makes the other twice as likely")
        elif (share := similarity(one, other)) >= NEAR:
            yield Finding(there, f"is nearly {here} (similarity {share:.2f})", "remove one, or make them differ")


def _wording(place: str, wish: str) -> Iterator[Finding]:
    if passage := asks_for_harm(wish):
        yield Finding(
            place, f'"{passage}" seems to ask for more harm', "turn it round, unless this is a negative control"
        )
    if refuses_without_reason(wish):
        yield Finding(
            place,
            "asks for a refusal and for no reason",
            "have it say why, or offer something instead; else the model learns stock refusals (paper, section 4.3)",
        )


def _kinds(constitution: Constitution) -> Iterator[Finding]:
    critiques, comparisons = constitution.critique_principles, constitution.comparison_principles
    few, many = sorted((len(critiques), len(comparisons)))
    if many > UNBALANCED * few:
        yield Finding(
            "critique_principles and comparison_principles",
            f"{len(critiques)} against {len(comparisons)}",
            "what one stage is taught is then not what the other one is judged by; write some more of the rarer kind",
        )
    if not any(counts_over_reaction(p.text) for p in comparisons):
        yield Finding(
            "comparison_principles",
            "none holds evasion or preaching against an answer",
            "add one that does; else stock refusals win every comparison (paper, section 4.3)",
        )


def _templates(constitution: Constitution) -> Iterator[Finding]:
    templates = constitution.templates
    for key, text in (("comparison", templates.comparison), ("reasoning", templates.reasoning)):
        if text and text.index("{a}") > text.index("{b}"):
            yield Finding(
                f"templates.{key}", "{b} stands before {a}", "put {a} first: A is the first option everywhere else"
            )
    labels = templates.labels
    if labels.human and labels.human == labels.assistant:
        yield Finding("templates.labels", f"human and assistant are both {labels.human!r}", "make them differ")


def _worked_critiques(constitution: Constitution) -> Iterator[Finding]:
    dialogues = constitution.few_shot_critiques
    places = [f"few_shot_critiques[{i}]" for i in range(len(dialogues))]
    for place, dialogue in zip(places, dialogues, strict=True):
        answer, revision = dialogue[-5].text, dialogue[-1].text
        if words(answer) == words(revision):
            yield Finding(
                place,
                "the revision is the answer",
                "keep it if the critique finds no fault; else rewrite it: it teaches to change nothing",
            )
        if words(dialogue[-2].text) == words(dialogue[-4].text):
            yield Finding(place, "the revision request is the critique request", "ask for a rewrite")
    yield from _copies(places, [_conversation(d[:-5]) for d in dialogues], [d[-1].text for d in dialogues])


def _worked_comparisons(constitution: Constitution) -> Iterator[Finding]:
    examples = constitution.few_shot_comparisons
    places = [f"few_shot_comparisons[{i}]" for i in range(len(examples))]
    for place, example in zip(places, examples, strict=True):
        if words(example.a) == words(example.b):
            yield Finding(place, "both answers are the same", "write two that differ")
        yield from _principle_of(place, example, constitution.comparison_principles)
    yield from _one_letter("few_shot_comparisons", [e.answer for e in examples])
    better = [e.a if e.answer == "A" else e.b for e in examples]
    yield from _copies(places, [_conversation(e.turns) for e in examples], better)


def _worked_reasoning(constitution: Constitution) -> Iterator[Finding]:
    dialogues = constitution.few_shot_reasoning
    places = [f"few_shot_reasoning[{i}]" for i in range(len(dialogues))]
    thoughts = [_conversation(d[1:]) for d in dialogues]
    letters = [_letters_of(text) for text in thoughts]
    for place, dialogue, said in zip(places, dialogues, letters, strict=True):
        if "{principle}" not in dialogue[0].text:
            yield Finding(place, "has no slot {principle}", "put it where the principle is asked; none is drawn for it")
        if not said:
            yield Finding(place, "ends without (A) or (B)", "let it end with the label of the better answer")
    yield from _one_letter("few_shot_reasoning", [said[-1] for said in letters if said])
    yield from _copies(places, [dialogue[0].text for dialogue in dialogues], thoughts)


def _letters_of(text: str) -> list[str]:
    """The option labels that a text names, in their order; the last one is its answer."""
    return re.findall(r"\(([AB])\)", text)


def _one_letter(where: str, letters: Sequence[str]) -> Iterator[Finding]:
    if len(letters) > 1 and len(set(letters)) == 1:
        yield Finding(where, f"the better answer is always {letters[0]}", "swap some: the letter gives it away")


def _principle_of(
    place: str, example: FewShotComparison, principles: Sequence[ComparisonPrinciple]
) -> Iterator[Finding]:
    """An id that is none was taken for the principle's text."""
    named = example.principle
    if named and len(named.split()) == 1 and named not in {p.text for p in principles}:
        near = difflib.get_close_matches(named, [p.id for p in principles], 1)
        hint = f"did you mean {near[0]}?" if near else "name one, write its text out, or leave it out"
        yield Finding(f"{place}.principle", f"{named!r} is no comparison principle's id", hint)


def _copies(places: Sequence[str], prompts: Sequence[str], answers: Sequence[str]) -> Iterator[Finding]:
    for (i, here), (j, there) in combinations(enumerate(places), 2):
        if words(prompts[i]) == words(prompts[j]):
            yield Finding(
                there, f"has the prompt of {here}", "take another one: two examples then teach as much as one"
            )
        elif words(answers[i]) == words(answers[j]):
            yield Finding(
                there, f"has the good answer of {here}", "write another one: a weak model copies what it sees"
            )


def _whole(principle: Principle) -> str:
    if isinstance(principle, ComparisonPrinciple):
        return principle.text
    return f"{principle.critique_request}\n{principle.revision_request}"


def _wish(principle: Principle) -> str:
    """The part that says what is wanted; a critique request speaks of harm because it looks for it."""
    return principle.text if isinstance(principle, ComparisonPrinciple) else principle.revision_request


def _conversation(turns: Sequence[Turn]) -> str:
    return "\n".join(turn.text for turn in turns)
