"""What refuses a certificate."""

from __future__ import annotations


class RefusedError(Exception):
    """A certificate says something that does not hold; the text tells what."""
