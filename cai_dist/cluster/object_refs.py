"""Rows that workers keep in Ray's object store: put there by the worker, fetched by whoever works on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError

from cai_dist.errors import WorkerDied
from cai_dist.types import HasRemoteRows, KeepRemote, RemoteBlock, RemoteRow

FETCH_SECONDS = 120.0
"""For all rows of a call: megabytes, from other nodes."""


def kept(result: Any) -> Any:
    """What a caller gets: of rows that are to be kept (reference, facts), of anything else itself."""
    return (ray.put(result.rows), result.facts) if isinstance(result, KeepRemote) else result


def resolve(args: Sequence[Any], phase: str) -> list[Any]:
    """Arguments with the rows in them; what holds none stays as it is. Raises WorkerDied where the worker that keeps
    them is gone, by its name."""
    found = _finder((row for arg in args if isinstance(arg, HasRemoteRows) for row in arg.rows()), phase)
    return [arg.resolve(found) if isinstance(arg, HasRemoteRows) else arg for arg in args]


def fetched(rows: Sequence[RemoteRow[Any]], phase: str) -> list[Any]:
    """What the rows stand for. Raises as `resolve`."""
    return list(map(_finder(rows, phase), rows))


def _finder(rows: Iterable[RemoteRow[Any]], phase: str) -> Callable[[RemoteRow[Any]], Any]:
    """What says of each of the rows what it stands for; all that it takes is here."""
    blocks = {id(row.block): row.block for row in rows}
    lists = dict(zip(blocks, _lists(list(blocks.values()), phase), strict=True))
    return lambda row: lists[id(row.block)][row.number]


def _lists(blocks: Sequence[RemoteBlock], phase: str) -> list[Any]:
    """One question to Ray for all; where that fails, one for each says whose is lost."""
    if not blocks:
        return []
    try:
        return ray.get([block.ref for block in blocks], timeout=FETCH_SECONDS)  # type: ignore[no-any-return]
    except (ObjectLostError, GetTimeoutError):
        for block in blocks:
            try:
                ray.get(block.ref, timeout=1.0)
            except (ObjectLostError, GetTimeoutError) as error:
                cause = "what it keeps of this iteration is lost; most likely its process died"
                raise WorkerDied(phase, block.role, block.rank, block.node, cause, -1, str(error)) from None
        raise
