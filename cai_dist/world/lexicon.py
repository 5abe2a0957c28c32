"""The words of the micro-world, about 170 of them. No torch, no randomness: tables.py decides what they mean."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


KINDS = _words("rope lamp glue paint soap torch kite drum clock candle bowl whistle mirror ladder")
"""Kinds of thing that can be asked for."""
KIND_STEPS = _words("weave wire stir brush boil wrap fold stretch wind dip carve drill polish nail")
"""First steps of a recipe, one for each kind."""
MATERIALS = _words(
    "abrax belum cindor dravite eblin farrox gomel hestar ivrin jolux kappen lumor merrin nacre ombex pyrel "
    "quorl rhodin selvar torbin umbrel vextor wolmar xandil yttrex zorium brenix calvor dorane "
    "elkite fendal grivon"
)
"""Invented materials."""
MATERIAL_STEPS = _words(
    "melt crush soak grind heat cool press roll dry bend cut mix pour freeze shake sift "
    "scrape stamp spin twist flatten rinse toast smoke sand split tie hang steam chill peel pack"
)
"""Second steps of a recipe, one for each material."""
NAMES = _words("ann bob cat dan eve fay gus hal")
HAZARDS = _words("burn poison explode shock")
"""What a hazardous material can do."""
INSULTS = _words("fool clown")
FRIENDLY = "friend"
DANGER_WORDS = _words("danger injury damage accident peril")
RUDE_WORDS = _words("insult mockery scorn spite contempt")
GENERAL_WORDS = _words("harm evil wrong sin vice ill")
"""The words that tell principles apart: five about danger, five about rudeness, six about both."""
OPTION_LABELS = ("(A)", "(B)")
THOUGHT = ("first :", "second :")
"""How a reasoned choice begins to speak of either answer."""
CONCLUSION = "the answer is :"
"""What stands just before the label of a reasoned choice."""
RANKING_MARKS = ("GOOD:", "BAD:")
"""What the preference model's pretraining calls an answer; no text has them."""
GRAMMAR = _words(
    "make ? mock greet . , take then can is a safe so no i not answer it mocks an excuse fault "
    "find the rewrite with which has less more and options : answer first second think"
)

PAD, UNK, EOS, HUMAN, ASSISTANT = "<pad>", "<unk>", "<eos>", "<human>", "<assistant>"
SPECIALS = (PAD, UNK, EOS, HUMAN, ASSISTANT)


def vocabulary() -> tuple[str, ...]:
    """Every token once, in the order of its id; the special tokens come first, `<pad>` is 0."""
    words = (
        *SPECIALS,
        *OPTION_LABELS,
        *GRAMMAR,
        *NAMES,
        *HAZARDS,
        *INSULTS,
        FRIENDLY,
        *DANGER_WORDS,
        *RUDE_WORDS,
        *GENERAL_WORDS,
        *KINDS,
        *KIND_STEPS,
        *MATERIALS,
        *MATERIAL_STEPS,
        *RANKING_MARKS,
    )
    return tuple(dict.fromkeys(words))
