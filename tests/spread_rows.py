"""Packed rows that several ranks compute together, compared with one rank that computes them alone; run by
`tests.two_ranks`."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from cai_dist.distributed.sequence_group import NeighbourGroup
from cai_dist.errors import ConfigError
from cai_dist.models.load import load_causal, load_scalar_with_language
from cai_dist.models.scalar import ScalarHeadModel
from cai_dist.models.sequence_parallel import spread
from cai_dist.types import RankInfo

SECONDS = 120.0
ROWS = {
    "odd": (7, 4, 2),
    "ends at the border": (7, 6),
    "begins at the border": (3, 4, 7),
    "straddles": (13,),
    "many": (2, 3, 1, 5, 1, 4, 3),
    "single tokens": (1, 1, 1),
    "shorter than the border": (2, 11),
    "stand-in": (2,),
    "one token": (1,),
}
"""Lengths of the sequences of a row."""


def row(lengths: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [N] and lengths [B], the same on every rank."""
    ids = torch.randint(3, 61, (sum(lengths),), generator=torch.Generator().manual_seed(sum(lengths)))
    return ids, torch.tensor(lengths)


def outputs(model: Any, lengths: tuple[int, ...], wanted: torch.Tensor | None = None) -> torch.Tensor:
    """Everything that a model says of a row, [numbers, N]."""
    ids, sizes = row(lengths)
    wanted = torch.ones(len(ids), dtype=torch.bool) if wanted is None else wanted
    found = model(ids, sizes, wanted) if isinstance(model, ScalarHeadModel) else model(ids, sizes, wanted, 0.7, True)
    return torch.stack(found)


def gradients(model: Any, lengths: tuple[int, ...], wanted: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """Of a loss in which each number of each token counts otherwise; of all ranks of the group together."""
    found = outputs(model, lengths, wanted)
    weights = torch.rand(found.shape, generator=torch.Generator().manual_seed(7)) - 0.3
    model.zero_grad()
    (found * weights).sum().backward()
    made = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    if model.group is not None:
        for grad in made.values():
            dist.all_reduce(grad)
    return made


def apart(found: torch.Tensor, expected: torch.Tensor, least: float = 1e-6) -> float:
    """The largest difference, relative to the largest number, or to `least` where that is larger."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(least))


def furthest(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest of the differences of tensors by name. A gradient that is rounding (a key's bias) counts against the
    others."""
    assert found.keys() == expected.keys()
    least = 1e-3 * max(float(tensor.abs().max()) for tensor in expected.values())
    return max(apart(found[name], expected[name], max(least, 1e-6)) for name in expected)


def passes(info: RankInfo, source: str, scalar: bool = False) -> dict[str, list[float]]:
    """Row -> [difference of what comes out, largest difference of a gradient], in float64."""
    load = (lambda: load_scalar_with_language(source, "fp32", 5, "packed")) if scalar else (
        lambda: load_causal(source, "fp32", "packed")
    )  # fmt: skip
    alone, together = load().double(), load().double()
    spread(together, NeighbourGroup(info.world_size, SECONDS))
    found = {}
    for name, lengths in ROWS.items():
        found[name] = _differences(together, alone, lengths)
    first = torch.zeros(13, dtype=torch.bool)
    first[:2] = True
    found["nothing in the last stretch"] = _differences(together, alone, (2, 11), first)
    behind = torch.zeros(13, dtype=torch.bool)
    behind[-(-13 // info.world_size)] = True
    found["the token behind the border"] = _differences(together, alone, (13,), behind)
    found["nothing at all"] = _differences(together, alone, (2, 11), torch.zeros(13, dtype=torch.bool))
    return found


def architectures(info: RankInfo, sources: dict[str, str]) -> dict[str, str]:
    """Name -> "same", "refused" where the model cannot be packed, or what is not the same."""
    found, group = {}, NeighbourGroup(info.world_size, SECONDS)
    for name, source in sources.items():
        try:
            alone, together = (load_causal(source, "fp32", "packed") for _ in range(2))
        except ConfigError:
            found[name] = "refused"
            continue
        spread(together, group)
        out, gradient = _differences(together, alone, (5, 8))  # no longer than the windows of these models
        found[name] = "same" if out < 1e-5 and gradient < 1e-4 else f"off by {out:.2g}, a gradient by {gradient:.2g}"
    return found


def kept(info: RankInfo, source: str) -> float:
    """What this rank keeps for the backward pass of a row of 120 tokens, in proportion to one that is alone."""
    model, sums = load_causal(source, "fp32", "packed"), [0, 0]
    for number, group in enumerate((None, NeighbourGroup(info.world_size, SECONDS))):
        model.group = group

        def pack(tensor: torch.Tensor, number: int = number) -> torch.Tensor:
            if tensor.grad_fn is not None and tensor.grad_fn.name() != "TBackward0":  # that of a weight
                sums[number] += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs(model, (80, 40))
    return sums[1] / sums[0]


def _differences(
    together: Any, alone: Any, lengths: tuple[int, ...], wanted: torch.Tensor | None = None
) -> list[float]:
    with torch.no_grad():
        out = apart(outputs(together, lengths, wanted), outputs(alone, lengths, wanted))
    return [out, furthest(gradients(together, lengths, wanted), gradients(alone, lengths, wanted))]
