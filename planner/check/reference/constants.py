"""The two numbers that a reference and whatever is compared with it have to share."""

from __future__ import annotations

from typing import Final

ROPE_BASE: Final = 50.0
"""Base of every rotation: small, so that a few dims and positions turn through many angles."""
NORM_EPS: Final = 1e-6
"""What every norm adds under its root."""
