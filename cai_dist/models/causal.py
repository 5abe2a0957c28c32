"""A causal language model behind the one forward signature that the engines know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cai_dist.config.training import Layout
from cai_dist.errors import ConfigError
from cai_dist.losses.logprobs import MAX_LOGITS, LogitScaling, hidden_logprobs
from cai_dist.models.compare import close, probe_ids, runs_plainly
from cai_dist.models.layout import predicted_rows, trunk_of, trunk_states, use_layout
from cai_dist.models.sequence_parallel import SequenceGroup, Stretch


class CausalModel(nn.Module):
    """Wraps a Hugging Face causal LM. `hf` is the wrapped model, the one that is saved; its output layer is exchanged
    for one with the same weights that also goes straight to log-probabilities. `like`: a small copy of the architecture
    that has been wrapped in this layout; then nothing is compared here. `group`: with whom it computes packed rows.

    Raises: ConfigError for an architecture that this layout, or this head, does not fit.
    """

    def __init__(self, hf: Any, layout: Layout = "packed", like: Any = None) -> None:
        super().__init__()
        self.hf, self.layout = hf, layout
        self.group: SequenceGroup | None = None
        self._scaling = logit_scaling(hf.config)
        _exchange_head(hf)
        if like is None:
            with runs_plainly(hf):
                self._check_head()
        use_layout(hf, layout, like)

    def forward(
        self, ids: Tensor, lengths: Tensor, wanted: Tensor, temperature: float, with_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities (nats) of the `wanted` tokens given those before them, and the entropies of the
        distributions that they are from, at `temperature`.

        Args:
            ids: long [N], sequences one after the other.
            lengths: long [B], of each; on the host, like `wanted`, or the pass waits for the device.
            wanted: bool [N]; the first token of a sequence has no prediction and is left out.
            with_entropy: without it the entropies are 0.

        Returns: two float32 tensors [N], 0 at tokens that are not wanted.
        """
        stretch = Stretch(len(ids), self.group)
        states = trunk_states(self.hf, ids, lengths, self.layout, stretch)
        rows = predicted_rows(lengths, wanted, ids.device, stretch)
        found: tuple[Tensor, Tensor] = self.hf.get_output_embeddings()(
            states[rows - 1 - stretch.first], ids[rows], temperature, self._scaling, with_entropy
        )
        logprobs, entropies = stretch.at_tokens(rows, found)
        return logprobs, entropies

    def use_full_head(self) -> None:
        """Compute the output layer in full precision from here on, whatever the model's (`models.head_dtype`)."""
        self.hf.get_output_embeddings().full_precision = True

    @torch.no_grad()
    def _check_head(self) -> None:
        """What comes out of the head must be what transformers makes of the same tokens."""
        ids = torch.tensor(probe_ids(self.hf, 5), device=self.hf.device)
        logits = self.hf(input_ids=ids[None], use_cache=False).logits[0]
        states = trunk_of(self.hf)(input_ids=ids[None], use_cache=False).last_hidden_state[0]
        found, _ = self.hf.get_output_embeddings()(states[:-1], ids[1:], 1.0, self._scaling, False)
        expected = torch.log_softmax(logits.float(), -1)[:-1].gather(-1, ids[1:, None]).squeeze(-1)
        if not close(self.hf, found.to(logits.dtype), expected.to(logits.dtype)):
            raise ConfigError(
                f"{type(self.hf).__name__} does more to its logits than scale and cap them: it cannot be trained here"
            )


class LogprobHead(nn.Linear):
    """An output layer. Called with hidden states alone it is linear; with targets too it gives their log-probabilities.

    That is one call however many chunks there are: under ZeRO-3 each call is a collective, and ranks may differ in the
    number of their chunks.
    """

    max_logits = MAX_LOGITS
    full_precision = False
    """Whether the product with the weights is computed in float32 (of half-precision weights and states)."""

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor | None = None,
        temperature: float = 1.0,
        scaling: LogitScaling | None = None,
        with_entropy: bool = False,
    ) -> Any:
        """Logits, or (log-probabilities [n], entropies [n]) of `targets` [n] for `hidden` [n, H]."""
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if self.full_precision:
            hidden, weight, bias = hidden.float(), weight.float(), None if bias is None else bias.float()
        if targets is None:
            return nn.functional.linear(hidden, weight, bias)
        return hidden_logprobs(
            hidden,
            weight,
            bias,
            targets,
            temperature,
            scaling=scaling,
            with_entropy=with_entropy,
            max_logits=self.max_logits,
        )


def logit_scaling(config: Any) -> LogitScaling:
    """What architectures do to logits after the output layer, by the names that the configurations of their language
    models use."""
    text = config.get_text_config()
    scale = 1.0 / float(getattr(text, "logits_scaling", None) or 1.0)
    for name in ("logit_scale", "lm_head_multiplier"):
        scale *= float(getattr(text, name, None) or 1.0)
    caps = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
    cap = next((float(getattr(text, name)) for name in caps if getattr(text, name, None)), None)
    return LogitScaling(scale, cap)


def _exchange_head(hf: Any) -> None:
    """Put a `LogprobHead` with the same parameters (tied ones stay tied) in the place of the output layer."""
    linear = hf.get_output_embeddings()
    if type(linear) is not nn.Linear:
        raise ConfigError(f"{type(hf).__name__} has no linear output layer: it cannot be trained here")
    head = LogprobHead(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
    head.weight, head.bias = linear.weight, linear.bias
    hf.set_output_embeddings(head.train(linear.training))
