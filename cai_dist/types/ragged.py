"""Rows of different lengths without padding: one flat array with offsets, and carriers packed the same way.

A message of thousands of short arrays costs a header for each; a flat one costs one. Imports numpy: `cai_dist.types`
does not import this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from cai_dist.types.samples import ArrayCarrier

Array = NDArray[Any]


class Ragged(Sequence[Array]):
    """B rows of different lengths: `flat` [N], one row after the other, and `offsets` int64 [B + 1], where each begins;
    N is the last offset. Row i is a view of `flat`."""

    __slots__ = ("_ends", "flat", "offsets")

    def __init__(self, flat: Array, lengths: Array) -> None:
        """`lengths`: [B]. Raises ValueError unless their sum is the length of `flat`."""
        self.flat = flat
        self.offsets: NDArray[np.int64] = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=self.offsets[1:])
        if self.offsets[-1] != len(flat):
            raise ValueError(f"{len(flat)} numbers for rows of {self.offsets[-1]}")
        self._ends: list[int] = self.offsets.tolist()  # looked up faster than numbers of an array

    @classmethod
    def of(cls, rows: Iterable[Sequence[Any] | Array], dtype: DTypeLike) -> Ragged:
        """Copies of some rows; a `Ragged` of this dtype is returned as it is."""
        if isinstance(rows, Ragged):
            return rows if rows.flat.dtype == dtype else rows.like(rows.flat.astype(dtype))
        arrays = [row if isinstance(row, np.ndarray) else np.asarray(row, dtype) for row in rows]
        flat = np.concatenate([np.zeros(0, dtype), *arrays], dtype=dtype, casting="unsafe")
        return cls(flat, np.array([len(row) for row in arrays], dtype=np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Ragged], dtype: DTypeLike) -> Ragged:
        """The rows of all parts, in their order."""
        flat = np.concatenate([np.zeros(0, dtype), *(part.flat for part in parts)])
        lengths = np.concatenate([np.zeros(0, np.int64), *(part.lengths for part in parts)])
        return cls(flat, lengths)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[B]."""
        return np.diff(self.offsets)

    def like(self, flat: Array) -> Ragged:
        """Other numbers [N] in rows of the same lengths."""
        return Ragged(flat, self.lengths)

    def sums(self) -> NDArray[np.float64]:
        """[B] sum of each row, 0 of an empty one; added in float64."""
        found = np.zeros(len(self))
        filled = self.lengths > 0
        if filled.any():
            found[filled] = np.add.reduceat(self.flat.astype(np.float64), self.offsets[:-1][filled])
        return found

    def without_last(self) -> tuple[Ragged, Array]:
        """The rows without the last number of each, and those numbers [B]; no row may be empty."""
        last = self.offsets[1:] - 1
        return Ragged(np.delete(self.flat, last), self.lengths - 1), self.flat[last]

    def appended(self, numbers: Array) -> Ragged:
        """The rows with one number more at the end of each; `numbers` [B]."""
        return Ragged(np.insert(self.flat, self.offsets[1:], numbers), self.lengths + 1)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, wanted: int) -> Array: ...
    @overload
    def __getitem__(self, wanted: slice) -> list[Array]: ...
    def __getitem__(self, wanted: int | slice) -> Array | list[Array]:
        if isinstance(wanted, slice):
            return [self[number] for number in range(*wanted.indices(len(self)))]
        ends = self._ends
        row = wanted if wanted >= 0 else wanted + len(ends) - 1
        if not 0 <= row < len(ends) - 1:
            raise IndexError(f"row {wanted} of {len(self)}")
        return self.flat[ends[row] : ends[row + 1]]

    def __iter__(self) -> Iterator[Array]:
        return (self.flat[start:end] for start, end in zip(self._ends, self._ends[1:], strict=False))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ragged):
            return NotImplemented
        return np.array_equal(self.offsets, other.offsets) and np.array_equal(self.flat, other.flat)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        flat, lengths = self.flat, self.lengths
        if flat.dtype == np.int32 and len(flat) and flat.min() >= 0 and flat.max() < 2**16:
            return _widened, (flat.astype(np.uint16), lengths)
        return Ragged, (flat, lengths.astype(np.int32))

    def __repr__(self) -> str:
        return f"Ragged({[row.tolist() for row in self]})"


def _widened(flat: Array, lengths: Array) -> Ragged:
    """Token ids of a vocabulary below 65,536, which travel in two bytes."""
    return Ragged(flat.astype(np.int32), lengths)


T = TypeVar("T", bound=ArrayCarrier)


class Packed(Sequence[T], Generic[T]):
    """Carriers of one class, held by columns: a `Ragged` for each array, a list for each other field. Item i is made
    when it is asked for; its arrays are views."""

    __slots__ = ("kind", "columns", "_count")

    def __init__(self, kind: type[T], columns: Mapping[str, Sequence[Any]]) -> None:
        """`columns`: every field of `kind`, all equally long. Raises ValueError otherwise."""
        counts = {len(column) for column in columns.values()}
        if columns.keys() != kind.__dataclass_fields__.keys() or len(counts) != 1:
            raise ValueError(f"{kind.__name__}: columns {sorted(columns)} with {sorted(counts)} items")
        self.kind, self.columns, (self._count,) = kind, columns, counts

    @classmethod
    def of(cls, kind: type[T], items: Sequence[T]) -> Packed[T]:
        """Copies of some items; what is packed is returned as it is."""
        if isinstance(items, Packed):
            return items
        columns: dict[str, Sequence[Any]] = {}
        for name in kind.__dataclass_fields__:
            column = [getattr(item, name) for item in items]
            columns[name] = Ragged.of(column, kind.ARRAYS[name]) if name in kind.ARRAYS else column
        return cls(kind, columns)

    def rows(self, name: str) -> Ragged:
        """The column of an array field."""
        column = self.columns[name]
        assert isinstance(column, Ragged)
        return column

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, wanted: int) -> T: ...
    @overload
    def __getitem__(self, wanted: slice) -> list[T]: ...
    def __getitem__(self, wanted: int | slice) -> T | list[T]:
        if isinstance(wanted, slice):
            return [self[number] for number in range(*wanted.indices(len(self)))]
        return self._item([column[wanted] for column in self.columns.values()])

    def __iter__(self) -> Iterator[T]:
        return map(self._item, zip(*self.columns.values(), strict=True))

    def _item(self, fields: Sequence[Any]) -> T:
        """Without the checks of its constructor: columns have the right types."""
        item = self.kind.__new__(self.kind)
        for name, value in zip(self.columns, fields, strict=True):
            object.__setattr__(item, name, value)
        return item

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        return Packed, (self.kind, dict(self.columns))
