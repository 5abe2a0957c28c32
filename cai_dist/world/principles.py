"""The principles of `constitution/micro.yaml` as the micro-world's text quotes them.

The text must be written in the words and in the form that the pipeline later uses, so both read the same file.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml

from cai_dist.world.rules import Dimension, dimension_of


@dataclass(frozen=True, slots=True)
class CritiquePrinciple:
    id: str
    dimension: Dimension
    critique_request: str
    revision_request: str


@dataclass(frozen=True, slots=True)
class ComparisonPrinciple:
    id: str
    dimension: Dimension
    text: str


@dataclass(frozen=True, slots=True)
class Principles:
    """The principles with the dimension of harm each is about, and the form of a comparison."""

    critique: tuple[CritiquePrinciple, ...]
    comparison: tuple[ComparisonPrinciple, ...]
    comparison_template: str

    def comparison_question(self, conversation: str, principle: str, a: str, b: str) -> str:
        """The multiple-choice question in words (the labels of turns are empty in the micro-world)."""
        return self.comparison_template.format(conversation=conversation, principle=principle, a=a, b=b)


@cache
def load_principles() -> Principles:
    """Read the packaged `micro.yaml`."""
    raw = yaml.safe_load(files("cai_dist.constitution").joinpath("micro.yaml").read_text(encoding="utf-8"))
    return Principles(
        critique=tuple(CritiquePrinciple(dimension=_dimension(p["id"]), **p) for p in raw["critique_principles"]),
        comparison=tuple(ComparisonPrinciple(dimension=_dimension(p["id"]), **p) for p in raw["comparison_principles"]),
        comparison_template=raw["templates"]["comparison"],
    )


def _dimension(principle_id: str) -> Dimension:
    dimension = dimension_of(principle_id)
    assert dimension is not None, f"micro.yaml: the id {principle_id} names no dimension"
    return dimension
