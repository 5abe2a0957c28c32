"""Tensors for the processes of one vLLM engine, through shared memory."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from cai_dist.engines.vllm.handover import share
from cai_dist.errors import WeightTransferError

TENSORS = {
    "a": torch.arange(7, dtype=torch.bfloat16),
    "b": torch.arange(12.0).view(3, 4).t(),
    "c": torch.tensor(3.0),
}
READ = """
import pickle, sys
found = pickle.load(sys.stdin.buffer).read()
print({name: (str(t.dtype), tuple(t.shape), float(t.float().sum())) for name, t in found.items()})
"""


def test_another_process_reads_what_was_shared() -> None:
    shared, memory = share(TENSORS)
    told = subprocess.run([sys.executable, "-c", READ], input=pickle.dumps(shared), capture_output=True, check=True)
    expected = {name: (str(t.dtype), tuple(t.shape), float(t.float().sum())) for name, t in TENSORS.items()}
    assert told.stdout.decode().strip() == str(expected)
    del memory


def test_what_was_read_stays_when_the_maker_lets_go() -> None:
    shared, memory = share(TENSORS)
    found = shared.read()
    del memory
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    with pytest.raises(WeightTransferError, match="cannot be reached"):
        shared.read()


def test_memory_of_another_size_is_refused() -> None:
    shared, _memory = share(TENSORS)
    with pytest.raises(WeightTransferError, match="bytes and is announced with"):
        replace(shared, size=shared.size + 1).read()
