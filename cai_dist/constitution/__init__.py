"""Principles, templates, worked examples, and the reading of what a model answered. Imports nothing heavy."""

from cai_dist.constitution.draws import draw, draw_some
from cai_dist.constitution.load import load_constitution, parse_constitution, run_constitution
from cai_dist.constitution.parse import Parsed, ParseFailure, clean_answer, split_dialogue
from cai_dist.constitution.prompts import (
    comparison_text,
    comparison_turns,
    critique_turns,
    few_shot_turns,
    reasoning_turns,
    revision_turns,
)
from cai_dist.constitution.schema import (
    ComparisonPrinciple,
    Constitution,
    CritiquePrinciple,
    FewShotComparison,
    Labels,
    Templates,
)

__all__ = [
    "ComparisonPrinciple",
    "Constitution",
    "CritiquePrinciple",
    "FewShotComparison",
    "Labels",
    "ParseFailure",
    "Parsed",
    "Templates",
    "clean_answer",
    "comparison_text",
    "comparison_turns",
    "critique_turns",
    "draw",
    "draw_some",
    "few_shot_turns",
    "load_constitution",
    "parse_constitution",
    "reasoning_turns",
    "revision_turns",
    "run_constitution",
    "split_dialogue",
]
