"""The ratings of harmfulness that a run learns from (2212.08073, section 4.5), and their held-out part."""

from __future__ import annotations

from collections.abc import Sequence

from cai_dist.config.data import RatingSource
from cai_dist.constitution.draws import draw
from cai_dist.data.held_out import held_out_openings
from cai_dist.data.prompts import opening
from cai_dist.data.ratings import load_rating_set
from cai_dist.errors import DataError
from cai_dist.stages.context import RunContext
from cai_dist.stages.tables.prompts import heldout_comparisons, heldout_prompts
from cai_dist.types import RatedAnswer

SERIES = "rating"
"""Name of the rating model's training in metrics."""
WORLD_RATINGS = 2000
"""How many of the micro-world's ratings are used where `data.harm_ratings.limit` does not say."""
_RANGE = 1 << 30


def rated_answers(ctx: RunContext) -> list[RatedAnswer]:
    """The ratings of `data.harm_ratings`, without conversations that open like a held-out prompt or
    comparison. Raises DataError."""
    source = ctx.config.data.harm_ratings
    aside = held_out_openings(heldout_prompts(ctx), heldout_comparisons(ctx))
    found = _world_ratings(ctx, source) if source.source == "world" else _file_ratings(ctx, source)
    kept = [x for x in found if opening(x.prompt) not in aside]
    if len(kept) < 2:
        raise DataError(f"data.harm_ratings: {len(kept)} ratings of prompts that are not held out; give at least 2")
    return kept


def check_ratings(ctx: RunContext) -> None:
    """Refuse ratings that are too few, hours before they are wanted. Raises DataError."""
    split(rated_answers(ctx), ctx.config.evaluate.ratings.heldout, ctx.config.seed)


def split(known: Sequence[RatedAnswer], share: float, seed: int) -> tuple[list[RatedAnswer], list[RatedAnswer]]:
    """(to learn from, kept apart): about `share` of the conversations apart, one opening never on both sides; at least
    one each. Raises DataError where all have the same opening."""
    openings = sorted(
        {opening(x.prompt) for x in known}, key=lambda name: (draw(seed, "rating split", name, n=_RANGE), name)
    )
    if len(openings) < 2:
        raise DataError("data.harm_ratings: every conversation has the same opening; none can be kept apart")
    apart = set(openings[: min(len(openings) - 1, max(1, round(share * len(openings))))])
    return [x for x in known if opening(x.prompt) not in apart], [x for x in known if opening(x.prompt) in apart]


def _file_ratings(ctx: RunContext, source: RatingSource) -> Sequence[RatedAnswer]:
    found = load_rating_set(source, ctx.config.seed)
    ctx.tracker.rewind(f"{SERIES}_source", -1)
    ctx.log(
        f"{SERIES}_source", 0, records=found.records, duplicates=found.duplicates, skipped=found.skipped
    )  # fmt: skip
    return found.ratings


def _world_ratings(ctx: RunContext, source: RatingSource) -> Sequence[RatedAnswer]:
    from cai_dist.world.ratings import rated_answers
    from cai_dist.world.tables import World

    return rated_answers(World(ctx.config.world_seed), source.limit or WORLD_RATINGS, ctx.config.seed)
