"""Log-probabilities of labels after prompts, in sorted batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cai_dist.config.engine import EngineConfig
from cai_dist.data.device import brought_together, moved_together
from cai_dist.engines.hf.forward import forward_arguments
from cai_dist.engines.hf.prefill_batches import PREFILL_TOKENS, cut_by_cost, left_padded, longest_first
from cai_dist.types import LabelRequest


@torch.inference_mode()
def label_logprobs(model: Any, config: EngineConfig, request: LabelRequest) -> list[tuple[float, ...]]:
    """For each prompt, the summed log-probability (nats) of each label's tokens after it. No prompt or label is empty.

    At most `config.max_rows` sequences in a pass, and `config.max_tokens` (default 8192) rows x columns.
    """
    # The last token of a label needs no row of its own: labels that differ only there share one.
    heads = sorted({label[:-1] for label in request.labels})
    owners = [(i, head) for i in range(len(request.prompts)) for head in heads]
    sequences = [request.prompts[i] + head for i, head in owners]
    order = longest_first(sequences)
    keep = max((len(label) for label in request.labels), default=1)
    columns = dict(
        zip(request.labels, moved_together([torch.tensor(x) for x in request.labels], model.device), strict=True)
    )
    found: dict[tuple[int, tuple[int, ...]], Tensor] = {}
    lengths = [len(sequences[i]) for i in order]
    for batch in cut_by_cost(lengths, config.max_rows, config.max_tokens or PREFILL_TOKENS):
        part = order[batch]
        tails = _tail_logprobs(model, [sequences[i] for i in part], keep)
        for i, tail in zip(part, tails, strict=True):
            prompt, head = owners[i]
            for label in request.labels:
                if label[:-1] == head:
                    found[prompt, label] = _label_logprob(tail, columns[label])
    numbers = dict(zip(found, torch.cat(brought_together(list(found.values()))).tolist(), strict=True)) if found else {}
    return [tuple(numbers[i, label] for label in request.labels) for i in range(len(request.prompts))]


def _tail_logprobs(model: Any, sequences: Sequence[tuple[int, ...]], keep: int) -> Tensor:
    """Log-probabilities [B, keep, V] of the token after each of the last `keep` ones (fewer if all are shorter)."""
    ids, mask, positions = left_padded(sequences, model.device)
    given = forward_arguments(model, ids, mask, positions)
    logits: Tensor = model(**given, use_cache=False, logits_to_keep=keep).logits
    return torch.log_softmax(logits.float(), -1)


def _label_logprob(tail: Tensor, label: Tensor) -> Tensor:
    """Summed log-probability (float64 []) of a label [n]; rows [-n:] of `tail` [keep, V] predict its tokens."""
    return tail[-len(label) :].gather(-1, label.unsqueeze(-1)).double().sum()
