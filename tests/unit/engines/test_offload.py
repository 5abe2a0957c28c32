"""Memory that leaves and comes back: every view stays a view, every bit stays a bit, and what is gone is gone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cai_dist.engines.training.offload import Offloader, model_tensors, optimizer_tensors
from cai_dist.models.load import load_causal
from tests.tiny import save_llama

CPU = torch.device("cpu")
MIB = 2**20


def held(*tensors: torch.Tensor) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def test_views_of_one_buffer_leave_and_return_together() -> None:
    flat = torch.randn(5000)
    views = [flat[:2000].view(40, 50), flat[2000:]]
    expected = flat.clone()
    memory = Offloader(CPU, {"weights": lambda: [*views]})
    memory.keep_on_device(())
    assert held(flat, *views) == 0
    memory.keep_on_device(())  # nothing is put away twice
    memory.keep_on_device(["weights"])
    assert torch.equal(flat, expected)
    views[0].zero_()
    assert flat[:2000].abs().sum() == 0 and torch.equal(flat[2000:], expected[2000:])


def test_a_part_can_stay_while_the_other_is_away() -> None:
    weights, moments = torch.randn(3000), torch.randn(3000)
    bits = [weights.clone(), moments.clone()]
    # The optimiser holds the weights, too: they are the first part's.
    memory = Offloader(CPU, {"weights": lambda: [weights], "optimizer": lambda: [weights, moments]})
    memory.keep_on_device(["weights"])
    assert held(weights) == 12_000 and held(moments) == 0
    memory.keep_on_device([])
    assert held(weights, moments) == 0
    memory.need("optimizer")
    assert held(weights) == 0 and torch.equal(moments, bits[1])
    memory.need("weights", "optimizer")
    assert torch.equal(weights, bits[0]) and torch.equal(moments, bits[1])
    assert memory.left == {}


def test_what_leaves_goes_before_what_comes() -> None:
    first, second = torch.randn(3000), torch.randn(3000)
    peaks: list[int] = []

    def watched(tensor: torch.Tensor) -> list[torch.Tensor]:
        peaks.append(held(first, second))
        return [tensor]

    memory = Offloader(CPU, {"weights": lambda: watched(first), "optimizer": lambda: watched(second)})
    memory.keep_on_device(["weights"])
    memory.keep_on_device(["optimizer"])
    assert held(first) == 0 and held(second) == 12_000
    peaks.clear()
    memory.keep_on_device(["weights"])
    assert held(first) == 12_000 and held(second) == 0
    assert max(peaks) == 12_000  # never both, not even in between


def test_scratch_space_is_given_up_without_its_content() -> None:
    scratch, moments = torch.full((MIB,), 7.0), torch.randn(3000)
    expected = moments.clone()
    memory = Offloader(CPU, {"weights": lambda: [], "optimizer": lambda: [moments]}, lambda: [scratch])
    memory.keep_on_device([])
    assert held(scratch, moments) == 0
    kept = [away.host for away in memory._away["optimizer"]]
    assert sorted(host is None for host in kept) == [False, True]
    memory.keep_on_device(["weights", "optimizer"])
    assert held(scratch) == 4 * MIB and torch.equal(moments, expected)


def test_a_model_mapped_from_a_file_gives_its_memory_up(tmp_path: Path) -> None:
    model = load_causal(save_llama(tmp_path, tied=True, seed=0), "fp32", "packed")
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    memory = Offloader(CPU, {"weights": lambda: model_tensors(model)})
    memory.keep_on_device([])
    # Norms of 64 numbers are too small to be worth a copy each.
    assert held(*model.parameters()) == sum(p.nbytes for p in before.values() if p.nbytes < 4096) > 0
    assert memory.left == {}
    memory.need("weights")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())


def test_what_cannot_leave_is_told(tmp_path: Path) -> None:
    save_file({"w": torch.randn(MIB)}, tmp_path / "w.safetensors")
    mapped = torch.from_file(str(tmp_path / "w.safetensors"), shared=False, size=MIB)
    assert not mapped.untyped_storage().resizable()
    halves = [mapped[: MIB // 2], mapped[MIB // 2 :]]  # to copy one of them would part it from the other
    memory = Offloader(CPU, {"weights": lambda: halves})
    memory.keep_on_device([])
    assert memory.left == {"weights": pytest.approx(4.0)}
    assert held(halves[0]) == 4 * MIB


@pytest.mark.parametrize("offload", [(), ("weights",), ("weights", "optimizer")])
def test_training_cannot_tell(offload: tuple[str, ...]) -> None:
    def train(parts: tuple[str, ...] | None) -> list[torch.Tensor]:
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(40, 60), torch.nn.Tanh(), torch.nn.Linear(60, 40))
        adam = torch.optim.AdamW(net.parameters(), lr=1e-2)
        memory = Offloader(
            CPU, {"weights": lambda: model_tensors(net), "optimizer": lambda: optimizer_tensors(net, adam)}
        )
        for step in range(4):
            memory.need("weights", "optimizer")
            if step % 2 == 0:
                adam.zero_grad()  # else gradients add up: they must survive, too
            net(torch.randn(8, 40)).square().sum().backward()
            adam.step()
            if parts is not None:
                memory.keep_on_device(parts)
        memory.need("weights", "optimizer")
        return [p.detach() for p in net.parameters()]

    plain, moved = train(None), train(offload)
    assert all(torch.equal(a, b) for a, b in zip(plain, moved, strict=True))


def test_the_optimiser_s_memory_is_moments_and_gradients() -> None:
    net = torch.nn.Linear(64, 64)
    adam = torch.optim.AdamW(net.parameters())
    net(torch.randn(2, 64)).sum().backward()
    adam.step()
    memory = Offloader(CPU, {"weights": lambda: model_tensors(net), "optimizer": lambda: optimizer_tensors(net, adam)})
    memory.keep_on_device(["weights"])
    state = adam.state[net.weight]
    assert net.weight.grad is not None
    assert held(state["exp_avg"], state["exp_avg_sq"], net.weight.grad) == 0
    assert held(net.weight) == 64 * 64 * 4
