"""Settings shared by all tests."""

from __future__ import annotations

import os

from hypothesis import settings

# A loaded two-core machine must not fail a property by the clock, and CI must test the same examples on every run.
settings.register_profile("house", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("house")
