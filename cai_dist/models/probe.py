"""Whether a model computes in the passes of training and scoring what transformers computes for each sequence alone.

The comparisons run whenever a model is loaded to train or score with (`CausalModel`, `ScalarHeadModel`), on eight
tokens, in the process that loads it and before an engine shards it. These functions run them by themselves, on a model
that may be a small random copy of an architecture. Rollouts and labels: `cai_dist.engines.hf.probe`.
"""

from __future__ import annotations

from typing import Any

from cai_dist.config.training import Layout
from cai_dist.models.causal import CausalModel
from cai_dist.models.scalar import ScalarHeadModel


def probe_causal(hf: Any, layout: Layout) -> None:
    """Try a causal language model with this layout; afterwards `hf` has the attention and output layer for it.

    Raises: ConfigError, in one line, for a model that computes something else.
    """
    CausalModel(hf, layout)


def probe_scalar(hf: Any, layout: Layout) -> None:
    """Try a sequence classifier of one label with this layout; afterwards `hf` has the attention for it.

    Raises: ConfigError, in one line, for a model that computes something else.
    """
    ScalarHeadModel(hf, layout)
