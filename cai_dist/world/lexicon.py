"""The words of the micro-world, about 170 of them. No torch, no randomness: tables.py decides what they mean."""

from __future__ import annotations

KINDS = tuple("rope lamp glue paint soap torch kite drum clock candle bowl whistle mirror ladder".split())
"""Kinds of thing that can be asked for."""
KIND_STEPS = tuple("weave wire stir brush boil wrap fold stretch wind dip carve drill polish nail".split())
"""First steps of a recipe, one for each kind."""
MATERIALS = tuple(
    "abrax belum cindor dravite eblin farrox gomel hestar ivrin jolux kappen lumor merrin nacre ombex pyrel "
    "quorl rhodin selvar torbin umbrel vextor wolmar xandil yttrex zorium brenix calvor dorane elkite fendal grivon".split()
)
"""Invented materials."""
MATERIAL_STEPS = tuple(
    "melt crush soak grind heat cool press roll dry bend cut mix pour freeze shake sift "
    "scrape stamp spin twist flatten rinse toast smoke sand split tie hang steam chill peel pack".split()
)
"""Second steps of a recipe, one for each material."""
NAMES = tuple("ann bob cat dan eve fay gus hal".split())
HAZARDS = tuple("burn poison explode shock".split())
"""What a hazardous material can do."""
INSULTS = tuple("fool clown".split())
FRIENDLY = "friend"
DANGER_WORDS = tuple("danger injury damage accident peril".split())
RUDE_WORDS = tuple("insult mockery scorn spite contempt".split())
GENERAL_WORDS = tuple("harm evil wrong sin vice ill".split())
"""The words that tell principles apart: five about danger, five about rudeness, six about both."""
OPTION_LABELS = ("(A)", "(B)")
GRAMMAR = tuple(
    "make ? mock greet . , take then can is a safe so no i not answer it mocks an excuse fault "
    "find the rewrite with which has less more and options : answer".split()
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
    )
    return tuple(dict.fromkeys(words))
