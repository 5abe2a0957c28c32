"""The "web" text that the micro-world's model is pretrained on.

Four kinds of document: facts; helpful-only chats about everything; reviews (an answer, a critique under a principle, a
revision); multiple-choice questions under a principle. Reviews and choices tell about demonstration combinations alone;
no text tells whether an *unknown* material is hazardous. Chats, reviews and choices are written in the form of the chat
template and of `micro.yaml`, so that the pipeline's prompts look like text that was read.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from cai_dist.constitution import Constitution, comparison_text
from cai_dist.types import TokenSequence, Turn
from cai_dist.world import lexicon
from cai_dist.world.answers import Answer, Body, Tone, answer, asked_for, faults, merits, revised
from cai_dist.world.principles import dimension, micro_constitution
from cai_dist.world.rules import better
from cai_dist.world.tables import Request, World

Piece = tuple[str, float]
"""Words and the weight of the loss at each of them."""

CHAT_SHARE, FACT_SHARE, REVIEW_SHARE = 0.26, 0.04, 0.24
"""Shares of documents; the rest are choices."""
INVERTED_SHARE = 0.15
"""Choices that ask for *more* harm: a minority, or the two opposite rules cancel while the skill is being learned."""
LABEL_NOISE = 0.06
"""Choices with a random label though one answer is better: the feedback model should not be certain."""
TIE_SHARE = 0.1
"""Share of the drawn choices without a better answer that are kept (with a random label). With all of them kept the
model was still at chance after 1,500 steps of 64 documents, with this share it is not after 300."""
EVASIVE_SHARE = 0.02
"""Chats answered with `i can not answer .`"""
CONTEXT_WEIGHT = 0.0
"""Loss weight of what the human says (nobody can predict it) and of the answer under review (the model would learn to
answer requests in that way)."""
CHOICE_WEIGHT = 10.0
"""Loss weight of a choice's one answer token; unweighted it drowns among the other tokens."""
CHATS_PER_DOCUMENT, FACTS_PER_DOCUMENT = 3, 8
"""Short texts share a document, so that documents are of similar length and little is padded."""


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
        u = self.rng.random()
        if u < CHAT_SHARE:
            return self.chats
        if u < CHAT_SHARE + FACT_SHARE:
            return self.facts
        if u < CHAT_SHARE + FACT_SHARE + REVIEW_SHARE:
            return self.review
        return self.choice

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
            body: Body = "evasive" if self.rng.random() < EVASIVE_SHARE else "comply"
            given = answer(self.world, request, *asked_for(request, body), self.rng)
            pieces += [_asked(request.text()), _answered(given.text(request))]
        return pieces

    def review(self) -> list[Piece]:
        """An answer, a request to find a fault, the critique, a request to rewrite, the revision."""
        request = self._request(*self.rng.choice(self.world.combos["demonstration"]))
        given = self._reviewed_answer(request)
        principle = self.rng.choice(self.constitution.critique_principles)
        better_answer = revised(self.world, request, given, dimension(principle), self.rng)
        return [
            _asked(request.text()),
            _answered(given.text(request), CONTEXT_WEIGHT),
            _asked(principle.critique_request),
            _answered(faults(self.world, request, given, dimension(principle))),
            _asked(principle.revision_request),
            _answered(better_answer.text(request)),
        ]

    def choice(self) -> list[Piece]:
        """Two answers to one request, a principle, and the label of the better one."""
        while True:
            request = self._request(*self.rng.choice(self.world.combos["demonstration"]))
            a, b = self._option(request), self._option(request)
            principle = self.rng.choice(self.constitution.comparison_principles)
            side = better(dimension(principle), merits(self.world, request, a), merits(self.world, request, b))
            if side is not None or self.rng.random() < TIE_SHARE:
                break
        text = principle.text
        if self.rng.random() < INVERTED_SHARE:
            text = text.replace("less", "more")
            side = {"a": "b", "b": "a", None: None}[side]
        if side is None or self.rng.random() < LABEL_NOISE:
            side = self.rng.choice(("a", "b"))
        turns = (Turn("human", request.text()),)
        question = comparison_text(self.constitution, turns, text, a.text(request), b.text(request))
        return [_asked(question), (lexicon.OPTION_LABELS[side == "b"], CHOICE_WEIGHT), (lexicon.EOS, 1.0)]

    def _request(self, kind: str, material: str) -> Request:
        u = self.rng.random()
        if u < 0.35:
            return Request(kind, material)
        return Request(kind, material, "mock" if u < 0.85 else "greet", self.rng.choice(lexicon.NAMES))

    def _reviewed_answer(self, request: Request) -> Answer:
        """Answers as they come up for review: mostly compliant, some revised before, some evasive."""
        hazardous = self.world.is_hazardous(request.material)
        bodies: tuple[Body, ...] = ("comply", "explain", "evasive")
        body = self.rng.choices(bodies, (0.5, 0.4, 0.1) if hazardous else (0.75, 0.15, 0.1))[0]
        return answer(self.world, request, body, self._tone(request), self.rng)

    def _option(self, request: Request) -> Answer:
        bodies: tuple[Body, ...] = ("comply", "explain", "evasive", "wrong")
        body = self.rng.choices(bodies, (0.42, 0.36, 0.11, 0.11))[0]
        return answer(self.world, request, body, self._tone(request), self.rng)

    def _tone(self, request: Request) -> Tone:
        if request.extra == "mock":
            return "insult" if self.rng.random() < 0.5 else "friendly"
        return asked_for(request)[1]


def _asked(text: str) -> Piece:
    return f"{lexicon.HUMAN} {text} {lexicon.ASSISTANT}", CONTEXT_WEIGHT


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
