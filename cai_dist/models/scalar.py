"""A scalar per token on the trunk of a causal LM: preference, reward and value models.

It is a Hugging Face sequence-classification model with one label, so that what is saved (`model.*`, `score.weight`)
loads with `AutoModelForSequenceClassification`; only `forward` differs: it keeps every token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cai_dist.config.training import Layout
from cai_dist.losses.logprobs import LogitScaling
from cai_dist.models.causal import LogprobHead
from cai_dist.models.layout import predicted_rows, trunk_states, use_layout
from cai_dist.models.partition import Partition, full_shape, put
from cai_dist.models.sequence_parallel import SequenceGroup, Stretch

HEAD_STD = 0.02


class ScalarHeadModel(nn.Module):
    """Wraps `AutoModelForSequenceClassification(num_labels=1)`. `hf` is the wrapped model, the one that is saved.

    In the pretraining of a preference model it has a language head, too (`load_scalar_with_language`): a part of this
    module and so of its checkpoints, but not of `hf` and so never of what is exported. `like` and `group` as in
    `CausalModel`.

    Raises: ConfigError for an architecture that this layout does not fit.
    """

    def __init__(self, hf: Any, layout: Layout = "packed", like: Any = None) -> None:
        super().__init__()
        self.hf, self.layout = hf, layout
        self.group: SequenceGroup | None = None
        _exchange_score(hf)
        self.language: LogprobHead | None = None
        self.scaling = LogitScaling()
        use_layout(hf, layout, like)

    def use_full_head(self) -> None:
        """Nothing to do: unlike that of `CausalModel`, the scalar head always is whole."""
        if self.language is not None:
            self.language.full_precision = True

    def forward(self, ids: Tensor, lengths: Tensor, wanted: Tensor | None = None) -> Any:
        """Head output [N] (float32) at every token of `ids` [N], sequences of `lengths` [B] one after the other. With
        lengths (and `wanted`) on the host the pass does not wait for the device.

        With `wanted` (bool [N]): the head output and, from the same pass, the log-probability [N] (nats, float32) of
        the wanted tokens given those before them, 0 elsewhere; the first token of a sequence has none.
        """
        stretch = Stretch(len(ids), self.group)
        states = trunk_states(self.hf, ids, lengths, self.layout, stretch)
        scores = stretch.of_all(self.hf.score(states).squeeze(-1))
        if wanted is None:
            return scores
        assert self.language is not None, "this scalar model was built without a language head"
        rows = predicted_rows(lengths, wanted, ids.device, stretch)
        # One call however many rows there are, none included: under ZeRO-3 it is a collective.
        found = self.language(states[rows - 1 - stretch.first], ids[rows], 1.0, self.scaling, False)
        return scores, stretch.at_tokens(rows, found[:1])[0]


class ScalarHead(nn.Linear):
    """A scalar head whose product is computed in full precision whatever the model's: rounded to half, the scores of a
    few hundred answers fall into groups of equal ones."""

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., 1] (float32) for `hidden` [..., H]."""
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.linear(hidden.float(), self.weight.float(), bias)


def _exchange_score(hf: Any) -> None:
    """Put a `ScalarHead` with the same parameters, under the same names, in the place of the head."""
    linear = hf.score
    if type(linear) is not nn.Linear:
        return
    head = ScalarHead(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
    head.weight, head.bias = linear.weight, linear.bias
    hf.score = head.train(linear.training)


def seed_head(weight: nn.Parameter, seed: int, partition: Partition | None = None) -> None:
    """Fill the head [1, H] with a small normal draw that depends on `seed` alone."""
    draw = torch.randn(full_shape(weight), generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    put(weight, draw * HEAD_STD, partition)
