"""Workers for integration tests: one that hosts any other in turn, one that misbehaves on request without torch."""

from __future__ import annotations

import gc
import os
import signal
import time
from pathlib import Path
from typing import Any

from cai_dist.errors import DataError
from cai_dist.types import KeepRemote, Prompt, RankInfo
from cai_dist.workers.registry import worker_class


class Bench:
    """Hosts one worker after the other in the same process and process group: a new process costs seconds."""

    def __init__(self, info: RankInfo) -> None:
        self.info = info
        self.inner: Any = None

    def make(self, target: str, kwargs: dict[str, Any]) -> None:
        self.inner = None
        gc.collect()
        self.inner = worker_class(target)(self.info, **kwargs)

    def use(self, method: str, *args: Any) -> Any:
        return getattr(self.inner, method)(*args)

    def mine(self, method: str, per_rank: list[Any], *args: Any) -> Any:
        """The method with this rank's part as its first argument; rows that would be kept come back."""
        result = getattr(self.inner, method)(per_rank[self.info.rank], *args)
        return result.rows if isinstance(result, KeepRemote) else result

    def my_steps(self, shards_per_rank: list[list[Any]]) -> list[dict[str, float]]:
        """`train_step` on each shard of this rank."""
        return [self.inner.train_step(shard) for shard in shards_per_rank[self.info.rank]]

    def raw(self) -> dict[str, tuple[Any, bool]]:
        """Every parameter of the trained model as it lies there, whole, and whether it is trained."""
        from cai_dist.models.tensors import to_numpy  # here: `Trouble` starts without torch

        engine = self.inner.engine
        named = dict(engine._model.hf.named_parameters())
        with engine._gathered(list(named.values())):
            return {name: (to_numpy(p), p.requires_grad) for name, p in named.items()}

    def raw_and_sent(self) -> tuple[dict[str, Any], Any, list[Any]]:
        """The parameters as `raw` gathers them, the plan of a transfer, and what this rank sends of it."""
        weights = self.inner.engine.weights
        plan = weights.plan(20_000, [""])
        return (
            {name: array.copy() for name, (array, _) in self.raw().items()},
            plan,
            [weights.part(bucket, plan.terms is None) for bucket in plan.buckets],
        )

    def held_bytes(self) -> dict[str, int]:
        """Memory of the parts of the trained model on the device."""
        tensors = self.inner.engine._memory._tensors
        parts: dict[str, dict[int, int]] = {}
        for part, found in tensors.items():
            storages = [t.untyped_storage() for t in found() if t.device.type != "meta"]
            parts[part] = {storage._cdata: storage.nbytes() for storage in storages}
        return {
            "weights": sum(parts["weights"].values()),
            "optimizer": sum(size for key, size in parts["optimizer"].items() if key not in parts["weights"]),
        }

    def crash_in_step(self, shard: Any, rank: int) -> dict[str, float]:
        """`rank` is killed, the others wait for it in the collectives of a step."""
        if self.info.rank == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner.train_step(shard)


class Person:
    """Goes on talking after some answers: which, and in how many words, follows from them."""

    def reset(self, prompt: Prompt, seed: int) -> None:
        self._words = [f"w{5 + seed % 50}"]

    def step(self, answer: str) -> str | None:
        said = answer.split()
        if len(said) % 3 == 0:
            return None
        self._words += said[:1]
        return " ".join(self._words)


class Trouble:
    """A worker without torch that does what it is told."""

    weight_version = 7

    def __init__(self, info: RankInfo, explode: bool = False) -> None:
        if explode:
            raise RuntimeError("cannot be built")
        self.info = info

    def echo(self, item: Any) -> tuple[int, Any]:
        return self.info.rank, item

    def meet(self, item: tuple[str, str]) -> str:
        """Make the first file, then wait for the second; an empty name is nothing."""
        mine, other = item
        if mine:
            Path(mine).touch()
        deadline = time.monotonic() + 60
        while other and not Path(other).exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{other} never came")
            time.sleep(0.02)
        return mine

    def once(self, item: tuple[str, str]) -> int:
        """The first that is given this file makes it and does what `act` says; any other answers with its process."""
        mark, what = item
        if not Path(mark).exists():
            Path(mark).touch()
            self.act(what)
        return os.getpid()

    def act(self, what: str) -> str:
        """die, fail, mistake, sleep (until killed) or ok."""
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "fail":
            raise KeyError("no such thing")
        if what == "mistake":
            raise DataError("prompts.jsonl:3: not JSON")
        if what == "sleep":
            time.sleep(600)
        return what
