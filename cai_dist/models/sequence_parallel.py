"""The tokens of one packed row spread over the ranks of a group (Ulysses, arXiv 2309.14509).

Every rank of the group has the same flat batch and computes one stretch of its tokens; attention alone looks beyond it.
There a rank gives the others the queries, keys and values of its tokens and gets those of all tokens for its share of
the heads: one all-to-all before attention, one behind it. What a model says of each token is gathered, so that every
rank sees the loss of the whole row and its gradient is that of the rank's own tokens; the ranks' gradients add up to
the gradient of one rank that computes the row alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cai_dist.config.checks.sequence_parallel import heads_problem
from cai_dist.errors import ConfigError


class SequenceGroup(Protocol):
    """The ranks that compute a packed row together. All its methods are collective."""

    rank: int
    """Number of this process in the group, and of the stretch that it computes."""
    size: int
    """Number of ranks in the group."""

    def exchange(self, blocks: Tensor) -> Tensor:
        """[size, ...] -> [size, ...]: block i goes to rank i, and what comes from rank i is block i. Its gradient is
        exchanged likewise."""
        ...

    def gathered(self, mine: Tensor) -> Tensor:
        """[n, ...] of each rank -> [size * n, ...], one after the other. Its gradient is the rank's own part of that
        of a loss that every rank computes alike."""
        ...


@dataclass(frozen=True, slots=True)
class Stretch:
    """The part of a flat row of `tokens` tokens that a rank computes: `width` of them from `first` on, of a row that is
    filled up to equal stretches; without a group all of it."""

    tokens: int
    group: SequenceGroup | None = None

    @property
    def width(self) -> int:
        """Tokens of each rank, what fills the row up included."""
        return self.tokens if self.group is None else -(-self.tokens // self.group.size)

    @property
    def first(self) -> int:
        """Index of the first one."""
        return 0 if self.group is None else self.group.rank * self.width

    @property
    def filling(self) -> int:
        """Tokens that fill the row up."""
        return 0 if self.group is None else self.width * self.group.size - self.tokens

    def part(self, row: Tensor) -> Tensor:
        """[width] of a filled row: what stands at this rank's tokens."""
        return row[self.first : self.first + self.width]

    def predicts(self, wanted: Tensor) -> Tensor:
        """bool [tokens]: the `wanted` ones whose prediction comes from a token of this rank, the one before. The token
        behind the border to the next rank is among them."""
        mine = torch.zeros_like(wanted)
        mine[self.first + 1 : self.first + self.width + 1] = True
        return wanted & mine

    def at_tokens(self, rows: Tensor, found: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Numbers [n] each of the tokens `rows` (long [n]) that this rank predicts -> [tokens] each, with those of all
        ranks, 0 where there are none. Collective."""
        if self.group is None:
            empty = [torch.zeros(self.tokens, dtype=x.dtype, device=x.device) for x in found]
            return tuple(zeros.index_copy(0, rows, x) for zeros, x in zip(empty, found, strict=True))
        table = torch.stack(list(found), dim=-1)
        mine = table.new_zeros(self.width, len(found)).index_copy(0, rows - 1 - self.first, table)
        whole = self.group.gathered(mine)[: self.tokens - 1]
        return F.pad(whole, (0, 0, 1, 0)).unbind(-1)

    def of_all(self, mine: Tensor) -> Tensor:
        """[width] numbers of this rank's tokens -> [tokens], those of all ranks. Collective."""
        return mine if self.group is None else self.group.gathered(mine)[: self.tokens]


def all_tokens_of_some_heads(group: SequenceGroup, *parts: Tensor) -> list[Tensor]:
    """This rank's tokens of all heads, [width, heads, d] each -> all tokens of its share of the heads, [size * width,
    heads / size, d] each. The numbers of heads must be divisible by the group's size. Collective."""
    flat = [part.unflatten(1, (group.size, -1)).transpose(0, 1).flatten(2) for part in parts]
    blocks = group.exchange(torch.cat(flat, dim=-1)).split([one.shape[-1] for one in flat], dim=-1)
    return [block.unflatten(2, (-1, part.shape[2])).flatten(0, 1) for block, part in zip(blocks, parts, strict=True)]


def own_tokens_of_all_heads(group: SequenceGroup, part: Tensor) -> Tensor:
    """All tokens of this rank's heads, [size * width, heads / size, d] -> its tokens of all heads, [width, heads, d].
    Collective."""
    blocks = group.exchange(part.unflatten(0, (group.size, -1)))
    return blocks.transpose(0, 1).flatten(1, 2)


def shared_heads(part: Tensor, size: int) -> Tensor:
    """Keys or values [n, key-value heads, d] in which every rank of a group of `size` has a head: where there are
    fewer, each is repeated."""
    heads = part.shape[1]
    return part.repeat_interleave(size // heads, dim=1) if heads < size and size % heads == 0 else part


def model_problem(config: Any, size: int) -> str | None:
    """Why the model with this transformers configuration cannot be spread over `size` ranks; None where it can."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    known = isinstance(heads, int) and isinstance(kv_heads, int)  # some have a number for each layer
    return heads_problem(heads, kv_heads, size) if known else None


def cannot_spread(model: Any, size: int, why: str) -> ConfigError:
    """The one line for a model that a sequence group of `size` cannot compute."""
    return ConfigError(f"sequence_parallel={size}: {type(model).__name__} has {why}; set another number, or 1")


def spread(model: Any, group: SequenceGroup) -> None:
    """Let a `CausalModel` or `ScalarHeadModel` compute packed rows together with the other ranks of `group` from here
    on. Raises ConfigError where it cannot."""
    if model.layout != "packed":
        raise ConfigError(f"sequence_parallel={group.size}: needs models.layout=packed")
    if problem := model_problem(model.hf.config, group.size):
        raise cannot_spread(model.hf, group.size, problem)
    model.group = group
