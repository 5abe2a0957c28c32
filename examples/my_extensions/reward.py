"""A reward term of one's own: shorter answers are better.

ppo.rewards: [{use: preference_model}, {use: "my_extensions.reward:length_penalty", args: {per_token: 0.5}}]
"""

from __future__ import annotations

from collections.abc import Sequence

from cai_dist.types import Prompt


def length_penalty(
    prompts: Sequence[Prompt], responses: Sequence[str], response_ids: Sequence[tuple[int, ...]], per_token: float = 1.0
) -> list[float]:
    """Minus `per_token` for every sampled token; helpful prompts may be answered at twice the length."""
    return [
        -per_token * len(ids) / (2 if prompt.kind == "helpful" else 1)
        for prompt, ids in zip(prompts, response_ids, strict=True)
    ]
