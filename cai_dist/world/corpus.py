"""The "web" text that the micro-world's model is pretrained on.

Six kinds of document: facts; helpful-only chats about everything; reviews (an answer, a critique under a principle, a
revision); multiple-choice questions under a principle, answered at once or after thinking; sessions of people who test
an assistant. All but facts and chats tell about demonstration combinations alone; no text tells whether an *unknown*
material is hazardous. Everything but facts is written in the form of the chat template and of `micro.yaml`, so that the
pipeline's prompts look like text that was read.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerFast

from cai_dist.constitution import Constitution, comparison_text
from cai_dist.types import TokenSequence, Turn
from cai_dist.world import lexicon
from cai_dist.world.answers import AnswerBody, Tone, WorldAnswer, answer, asked_for, faults, merits, revised
from cai_dist.world.principles import dimension, micro_constitution
from cai_dist.world.rules import Dimension, Side, better
from cai_dist.world.tables import World, WorldRequest

Piece = tuple[str, float]
"""Words and the weight of the loss at each of them."""

CHAT_SHARE, FACT_SHARE, REVIEW_SHARE, REASONED_SHARE, SESSION_SHARE = 0.21, 0.04, 0.22, 0.14, 0.03
"""Shares of documents; the rest are choices that are answered at once."""
DIRECT_SHARE = 0.1
"""Reviews that rewrite without a critique (paper, section 3.5)."""
INVERTED_SHARE = 0.15
"""Choices that ask for *more* harm: a minority, or the two opposite rules cancel while the skill is being learned."""
LABEL_NOISE = 0.03
"""Choices with a random label though one answer is better: the feedback model should not be certain."""
TIE_SHARE = 0.1
"""Share of the drawn choices without a better answer that are kept (with a random label). With all of them kept the
model was still at chance after 1,500 steps of 64 documents, with this share it is not after 300."""
EVASIVE_SHARE = 0.02
"""Chats answered with `i can not answer .`"""
CONTEXT_WEIGHT = 0.0
"""Loss weight of what the human says (nobody can predict it) and of the answer under review (the model would learn to
answer requests in that way)."""
SESSION_WEIGHT = 0.3
"""Loss weight of the requests of a session: enough to write more of their kind, little beside the rest."""
CHOICE_WEIGHT = 10.0
"""Loss weight of a choice's one answer token; unweighted it drowns among the other tokens."""
CHATS_PER_DOCUMENT, FACTS_PER_DOCUMENT, REQUESTS_PER_SESSION = 3, 8, 6
"""Short texts share a document, so that documents are of similar length and little is padded."""
_SIDES: tuple[Side, Side] = ("a", "b")


@dataclass(frozen=True)
class _Pair:
    """Two answers to compare; `side` is the one to choose (drawn in a `tie`)."""

    request: WorldRequest
    a: WorldAnswer
    b: WorldAnswer
    principle: str
    about: Dimension
    side: Side
    tie: bool

    def put(self, constitution: Constitution, template: str) -> str:
        """The question in words, in this template of the constitution."""
        templates = replace(constitution.templates, comparison=template)
        turns = (Turn("human", self.request.text()),)
        answers = self.a.text(self.request), self.b.text(self.request)
        return comparison_text(replace(constitution, templates=templates), turns, self.principle, *answers)


@dataclass(frozen=True)
class _Writer:
    """Writes documents from the tables, with its own stream of chance."""

    world: World
    constitution: Constitution
    rng: random.Random

    def documents(self, count: int) -> Iterator[list[Piece]]:
        """`count` documents of mixed kinds."""
        for _ in range(count):
            yield self._draw_kind()()

    def _draw_kind(self) -> Callable[[], list[Piece]]:
        kinds = (self.chats, self.facts, self.review, self.reasoned_choice, self.session, self.choice)
        shares = (CHAT_SHARE, FACT_SHARE, REVIEW_SHARE, REASONED_SHARE, SESSION_SHARE)
        return self.rng.choices(kinds, (*shares, 1 - sum(shares)))[0]

    def facts(self) -> list[Piece]:
        """`MATERIAL can HAZARD .` or `MATERIAL is safe .` for known materials."""
        told = [m for m, known in self.world.knowledge.items() if known != "unknown"]
        words = []
        for material in self.rng.choices(told, k=FACTS_PER_DOCUMENT):
            hazard = self.world.hazard.get(material)
            words.append(f"{material} can {hazard} ." if hazard else f"{material} is safe .")
        return [(f" {lexicon.EOS} ".join([*words, ""]).strip(), 1.0)]

    def chats(self) -> list[Piece]:
        """Helpful-only answers to requests about every combination, held-out and unknown ones too."""
        pieces: list[Piece] = []
        for _ in range(CHATS_PER_DOCUMENT):
            request = self._request(self.rng.choice(lexicon.KINDS), self.rng.choice(lexicon.MATERIALS))
            body: AnswerBody = "evasive" if self.rng.random() < EVASIVE_SHARE else "comply"
            given = answer(self.world, request, *asked_for(request, body), self.rng)
            pieces += [_asked(request.text()), _answered(given.text(request))]
        return pieces

    def review(self) -> list[Piece]:
        """An answer, a request to find a fault, the critique, a request to rewrite, the revision."""
        request = self._request(*self.rng.choice(self.world.combos["demonstration"]))
        given = self._reviewed_answer(request)
        principle = self.rng.choice(self.constitution.critique_principles)
        better_answer = revised(self.world, request, given, dimension(principle), self.rng)
        critique = [
            _asked(principle.critique_request),
            _answered(faults(self.world, request, given, dimension(principle))),
        ]
        return [
            _asked(request.text()),
            _answered(given.text(request), CONTEXT_WEIGHT),
            *([] if self.rng.random() < DIRECT_SHARE else critique),
            _asked(principle.revision_request),
            _answered(better_answer.text(request)),
        ]

    def choice(self) -> list[Piece]:
        """Two answers to one request, a principle, and the label of the better one."""
        drawn = self._two_answers()
        side = self.rng.choice(_SIDES) if self.rng.random() < LABEL_NOISE else drawn.side
        question = drawn.put(self.constitution, self.constitution.templates.comparison)
        return [_asked(question), (lexicon.OPTION_LABELS[side == "b"], CHOICE_WEIGHT), (lexicon.EOS, 1.0)]

    def reasoned_choice(self) -> list[Piece]:
        """The same, thought through: what is wrong with the first answer, what with the second, then the label. Whoever
        has thought is sure of it; differences that a critique does not name come up in plain choices alone."""
        while True:
            drawn = self._two_answers()
            found = [faults(self.world, drawn.request, given, drawn.about) for given in (drawn.a, drawn.b)]
            if drawn.tie or found[0] != found[1]:
                break
        thought = f"{lexicon.THOUGHT[0]} {found[0]} {lexicon.THOUGHT[1]} {found[1]} {lexicon.CONCLUSION}"
        return [
            _asked(drawn.put(self.constitution, self.constitution.templates.reasoning)),
            (thought, 1.0),
            (lexicon.OPTION_LABELS[drawn.side == "b"], CHOICE_WEIGHT),
            (lexicon.EOS, 1.0),
        ]

    def session(self) -> list[Piece]:
        """What people ask to test an assistant, one thing after the other (something hazardous, or to mock somebody),
        with the helpful-only answers. Here the human's turns are learned, so that the model can write more of them."""
        pieces: list[Piece] = []
        while len(pieces) < 2 * REQUESTS_PER_SESSION:
            request = self._request(*self.rng.choice(self.world.combos["demonstration"]))
            if request.extra == "mock" or (self.world.is_hazardous(request.material) and not request.extra):
                given = answer(self.world, request, *asked_for(request), self.rng)
                pieces += [_asked(request.text(), SESSION_WEIGHT), _answered(given.text(request))]
        return pieces

    def _two_answers(self) -> _Pair:
        """Two answers to one request and a principle; most pairs that it does not tell apart are drawn again."""
        while True:
            request = self._request(*self.rng.choice(self.world.combos["demonstration"]))
            a, b = self._option(request), self._option(request)
            principle = self.rng.choice(self.constitution.comparison_principles)
            side = better(dimension(principle), merits(self.world, request, a), merits(self.world, request, b))
            if side is not None or self.rng.random() < TIE_SHARE:
                break
        chosen = self.rng.choice(_SIDES) if side is None else side
        text = principle.text
        if self.rng.random() < INVERTED_SHARE:
            text = text.replace("less", "more")
            chosen = "b" if chosen == "a" else "a"
        return _Pair(request, a, b, text, dimension(principle), chosen, side is None)

    def _request(self, kind: str, material: str) -> WorldRequest:
        u = self.rng.random()
        if u < 0.35:
            return WorldRequest(kind, material)
        return WorldRequest(kind, material, "mock" if u < 0.85 else "greet", self.rng.choice(lexicon.NAMES))

    def _reviewed_answer(self, request: WorldRequest) -> WorldAnswer:
        """Answers as they come up for review: mostly compliant, some revised before, some evasive."""
        hazardous = self.world.is_hazardous(request.material)
        bodies: tuple[AnswerBody, ...] = ("comply", "explain", "evasive")
        body = self.rng.choices(bodies, (0.5, 0.4, 0.1) if hazardous else (0.75, 0.15, 0.1))[0]
        return answer(self.world, request, body, self._tone(request), self.rng)

    def _option(self, request: WorldRequest) -> WorldAnswer:
        bodies: tuple[AnswerBody, ...] = ("comply", "explain", "evasive", "wrong")
        body = self.rng.choices(bodies, (0.42, 0.36, 0.11, 0.11))[0]
        return answer(self.world, request, body, self._tone(request), self.rng)

    def _tone(self, request: WorldRequest) -> Tone:
        if request.extra == "mock":
            return "insult" if self.rng.random() < 0.5 else "friendly"
        return asked_for(request)[1]


def _asked(text: str, weight: float = CONTEXT_WEIGHT) -> Piece:
    return f"{lexicon.HUMAN} {text} {lexicon.ASSISTANT}", weight


def _answered(text: str, weight: float = 1.0) -> Piece:
    return f"{text} {lexicon.EOS}", weight


def documents(world: World, count: int, seed: int) -> Iterator[list[Piece]]:
    """`count` documents of the web text as weighted pieces of words, the same for the same seed."""
    yield from _Writer(world, micro_constitution(), random.Random(f"micro-world text {seed}")).documents(count)


def pretraining_sequences(world: World, n: int, seed: int, tokenizer: PreTrainedTokenizerFast) -> list[TokenSequence]:
    """`n` documents as token ids with loss weights.

    Words become ids by one look-up each: equal to `tokenizer.apply_chat_template` (tested), and much faster.
    """
    ids_of = tokenizer.get_vocab()
    sequences = []
    for pieces in documents(world, n, seed):
        ids: list[int] = []
        weights: list[float] = []
        for words, weight in pieces:
            new = [ids_of[word] for word in words.split()]
            ids += new
            weights += [weight] * len(new)
        sequences.append(TokenSequence(tuple(ids), tuple(weights)))
    return sequences
