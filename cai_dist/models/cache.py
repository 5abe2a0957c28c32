"""Where models that were made or converted are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """$CAI_DIST_CACHE, or ~/.cache/cai_dist. May not exist yet."""
    return Path(os.environ.get("CAI_DIST_CACHE") or Path.home() / ".cache" / "cai_dist")
