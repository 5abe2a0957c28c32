"""The receiving side of a weight transfer: what may come when, checked tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from cai_dist.errors import WeightTransferError
from cai_dist.models.tensors import from_numpy, spec_of
from cai_dist.types import TensorSpec


class WeightReceiver:
    """One transfer into `parameters` (name -> parameter): made by `begin`, then `accept` ..., then `finish`.

    Every refusal raises WeightTransferError and leaves the transfer unfinished; what was refused is not copied.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], version: int, manifest: Sequence[TensorSpec]) -> None:
        self.version = version
        self._parameters = dict(parameters)
        self._expected = {spec.name: spec for spec in manifest}
        self._missing = set(self._expected)
        if len(self._expected) != len(manifest):
            raise WeightTransferError(f"weight version {version}: the manifest names a tensor twice")
        unknown = sorted(set(self._expected) - set(self._parameters))
        absent = sorted(set(self._parameters) - set(self._expected))
        if unknown or absent:
            what = f"names {unknown[0]}, which this model lacks" if unknown else f"lacks {absent[0]}"
            raise WeightTransferError(f"weight version {version}: the manifest {what}")
        for name, spec in self._expected.items():
            if spec != spec_of(name, self._parameters[name]):
                own = spec_of(name, self._parameters[name])
                raise WeightTransferError(
                    f"weight version {version}: {name} is announced as {spec.dtype}{list(spec.shape)} of {spec.nbytes} "
                    f"bytes but is {own.dtype}{list(own.shape)} of {own.nbytes} bytes here"
                )

    def accept(self, bucket: Mapping[str, np.ndarray]) -> None:
        """Check all tensors of the bucket, then copy them."""
        for name, array in bucket.items():
            self._check(name, array)
        with torch.no_grad():
            for name, array in bucket.items():
                self._parameters[name].copy_(from_numpy(array, self._expected[name].dtype))
                self._missing.discard(name)

    def finish(self, version: int) -> None:
        """The transfer is whole."""
        if version != self.version:
            raise WeightTransferError(f"finish of weight version {version} while version {self.version} is open")
        if self._missing:
            raise WeightTransferError(
                f"weight version {version}: {len(self._missing)} tensors never came, first {sorted(self._missing)[0]}"
            )

    def _check(self, name: str, array: np.ndarray) -> None:
        spec = self._expected.get(name)
        if spec is None:
            raise WeightTransferError(f"weight version {self.version}: unknown tensor {name!r}")
        if name not in self._missing:
            raise WeightTransferError(f"weight version {self.version}: {name} came twice")
        carrier = "uint16" if spec.dtype == "bfloat16" else spec.dtype
        if array.dtype.name != carrier or tuple(array.shape) != spec.shape or array.nbytes != spec.nbytes:
            raise WeightTransferError(
                f"weight version {self.version}: {name} came as {array.dtype.name}{list(array.shape)} of "
                f"{array.nbytes} bytes, announced was {carrier}{list(spec.shape)} of {spec.nbytes} bytes"
            )
