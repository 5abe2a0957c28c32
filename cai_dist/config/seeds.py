"""Seeds that depend on their keys alone: the same on every machine, in every process, in any order."""

from __future__ import annotations

import hashlib
import json


def stable_seed(*keys: object) -> int:
    """A seed of 63 bits from `keys`, by their texts. For orders, sides and samplers of a stage."""
    digest = hashlib.sha256("\x1f".join(str(k) for k in keys).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def derive_seed(seed: int, purpose: str, iteration: int) -> int:
    """A seed of 31 bits for one purpose in one iteration of PPO, unrelated to every other."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{iteration}".encode()).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFFFFFF


def draw_number(*keys: str | int) -> int:
    """A number of 128 bits from `keys` as JSON, so that ("a", 1) and ("a1",) differ. For draws by remainder: the bias
    of `draw_number(...) % n` is below 2^-100 for any n in use."""
    text = json.dumps(keys, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")
