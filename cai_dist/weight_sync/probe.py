"""What is asked after a weight transfer: do trainer and engine say the same of a few short sequences?

The ledger of a transfer knows that every byte came. Whether an engine that fuses, cuts and packs them for its kernels
computes the same model with them, only a computation tells.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from cai_dist.config.training import Dtype
from cai_dist.errors import WeightTransferError
from cai_dist.types import Generation, LabelRequest, WeightProbe

_LENGTHS = (3, 5, 7, 9)
_LABELS = 4
TOLERANCE: dict[Dtype, float] = {"fp32": 1e-3, "bf16": 0.15}
"""Nats that the log-probability of one token may differ by, in the mean over all that are asked for. Of SmolLM2 in bf16
vLLM and the trainer differ by 0.08; one matrix that is wrong makes 0.23 and more, in either dtype
(benchmarks/results/transfer-probe.md)."""


def probe_samples(vocabulary: int) -> list[Generation]:
    """Short sequences of ids from all over the vocabulary, each ended by each of a few labels of one token; prompts in
    order, labels within them."""
    rng = random.Random(vocabulary)
    prompts = [np.array([rng.randrange(vocabulary) for _ in range(length)], np.int32) for length in _LENGTHS]
    labels = [rng.randrange(vocabulary) for _ in range(_LABELS)]
    nothing = np.zeros(1, np.float32)
    return [
        Generation(prompt, np.array([label], np.int32), nothing, "length", -1, "probe")
        for prompt in prompts
        for label in labels
    ]


def probe_of(samples: Sequence[Generation], logprobs: Sequence[float]) -> WeightProbe:
    """What the trainer says: `logprobs` (nats) of the labels of `probe_samples`."""
    prompts = [tuple(int(token) for token in sample.prompt_ids) for sample in samples[::_LABELS]]
    labels = [(int(sample.response_ids[0]),) for sample in samples[:_LABELS]]
    rows = [tuple(logprobs[start : start + _LABELS]) for start in range(0, len(logprobs), _LABELS)]
    return WeightProbe(LabelRequest(tuple(prompts), tuple(labels)), tuple(rows))


def refuse_other_answers(probe: WeightProbe, found: Sequence[Sequence[float]], dtype: Dtype, version: int) -> float:
    """The mean distance (nats a token) between an engine's answers and the trainer's. Raises WeightTransferError where
    it is more than two ways to compute one model explain, or no number."""
    distance = float(np.abs(np.array(found) - np.array(probe.logprobs)).mean())
    if not distance <= TOLERANCE[dtype]:
        raise WeightTransferError(
            f"weight version {version}: all of it came, but the engine computes another model with it: its "
            f"log-probabilities are {distance:.3g} nats a token from the trainer's, where {TOLERANCE[dtype]:g} are "
            "allowed; set engine.backend to another engine (docs/transfer.md)"
        )
    return distance
