"""The micro-world's own constitution, which its text quotes: the words and forms that the pipeline later uses."""

from __future__ import annotations

from functools import cache

from cai_dist.constitution import ComparisonPrinciple, Constitution, CritiquePrinciple, load_constitution
from cai_dist.world.rules import Dimension, dimension_of


@cache
def micro_constitution() -> Constitution:
    """The packaged `micro.yaml`."""
    return load_constitution("micro")


def dimension(principle: CritiquePrinciple | ComparisonPrinciple) -> Dimension:
    """What a principle of `micro.yaml` is about."""
    found = dimension_of(principle.id)
    assert found is not None, f"micro.yaml: the id {principle.id} names no dimension"
    return found
