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

_TOKENS = 12
_ASKED = (4, 6, 8, 10)
"""Positions at which the next token's log-probability is asked for."""
TOLERANCE: dict[Dtype, float] = {"fp32": 1e-3, "bf16": 0.2}
"""Nats that the log-probability of one token may differ by, in the mean over all that are asked for. Of SmolLM2 in bf16
vLLM and the trainer differ by 0.07; one matrix that is wrong makes 0.18 and more, 1.4 in the median
(benchmarks/results/transfer-probe.md)."""


def probe_sample(vocabulary: int) -> Generation:
    """A short sequence of ids from all over the vocabulary; all but the first few are its response."""
    rng = random.Random(vocabulary)
    ids = np.array([rng.randrange(vocabulary) for _ in range(_TOKENS)], np.int32)
    prompt, response = ids[: _ASKED[0]], ids[_ASKED[0] :]
    return Generation(prompt, response, np.zeros(len(response), np.float32), "length", -1, "probe")


def probe_of(sample: Generation, logprobs: Sequence[float] | np.ndarray) -> WeightProbe:
    """What the trainer says: `logprobs` (nats) of the response of `probe_sample`."""
    ids = [int(token) for token in (*sample.prompt_ids, *sample.response_ids)]
    prompts = tuple(tuple(ids[:at]) for at in _ASKED)
    labels = tuple((ids[at],) for at in _ASKED)
    return WeightProbe(LabelRequest(prompts, labels), tuple(float(logprobs[at - _ASKED[0]]) for at in _ASKED))


def refuse_other_answers(probe: WeightProbe, found: Sequence[Sequence[float]], tolerance: float, version: int) -> float:
    """The mean distance (nats a token) between an engine's answers (one row for each prompt of the probe) and the
    trainer's. Raises WeightTransferError where it is more than `tolerance`, or no number."""
    distance = float(np.abs(np.diagonal(np.array(found)) - np.array(probe.logprobs)).mean())
    if not distance <= tolerance:
        raise WeightTransferError(
            f"weight version {version}: all of it came, but the engine computes another model with it: its "
            f"log-probabilities are {distance:.3g} nats a token from the trainer's, where {tolerance:g} are allowed; "
            "set engine.backend to another engine, or ppo.transfer_tolerance (docs/transfer.md)"
        )
    return distance
