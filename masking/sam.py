"""The former place of `masking.segmenter.sam`, for programs that import it from here."""

import warnings
from typing import Any

from masking.segmenter import sam


def __getattr__(name: str) -> Any:
    """Return what `masking.segmenter.sam` has under a name, with a warning."""
    if not hasattr(sam, name):
        raise AttributeError(f"module 'masking.sam' has no attribute {name!r}")
    warnings.warn(
        "masking.sam has moved; import from masking.segmenter.sam", DeprecationWarning, stacklevel=2
    )
    return getattr(sam, name)
