"""Where what runs share is kept, and how much of it: TFBIG_CACHE and TFBIG_CACHE_GB.

Below data/known_files.py and training/feature_cache.py, which both keep their files there. Imports no TensorFlow.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from tfbig.errors import UsageError
from tfbig.paths import expanded

FOLDER_VARIABLE = "TFBIG_CACHE"
LIMIT_VARIABLE = "TFBIG_CACHE_GB"
_DEFAULT_LIMIT_GB = 20.0


def folder() -> Path:
    """TFBIG_CACHE, or the user's cache folder; it need not exist.

    Raises:
        UsageError: It is in a home folder that does not exist.
    """
    given = os.environ.get(FOLDER_VARIABLE)
    return expanded(given or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "tfbig", "features"))


def limit_bytes() -> int:
    """TFBIG_CACHE_GB in bytes; 0 for no cache.

    Raises:
        UsageError: It is no size.
    """
    text = os.environ.get(LIMIT_VARIABLE) or str(_DEFAULT_LIMIT_GB)
    try:
        limit_gb = float(text)
    except ValueError:
        limit_gb = -1.0
    if not 0 <= limit_gb < math.inf:
        raise UsageError(f"{LIMIT_VARIABLE} must be a size in gigabytes, 0 for no cache, got {text!r}; usual is 20.")
    return int(limit_gb * 1e9)
