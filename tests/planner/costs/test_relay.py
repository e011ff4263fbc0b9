"""Relay: what it passes on, and that a source changes only the calls that it overrides."""

import pytest

from planner.clusters.build import load_gpu
from planner.costs.get_time import Roofline
from planner.costs.relay import AttentionCall, Relay

SIZES = (2, 8, 2, 128, 256, 64, 64)


class Doubled(Relay):
    """Twice the time of attention."""

    def _attention(self, call: AttentionCall):
        return 2 * call.of(self.fallback)


@pytest.fixture(scope="module")
def plain():
    return Roofline(load_gpu("h100"))


def test_every_call_is_the_fallbacks(plain):
    relay = Relay(plain)
    assert relay.source == plain.source == "fitted"
    assert relay.source_of("prefill", "fp8") == plain.source_of("prefill", "fp8")
    assert relay.get_time(512, 256, [64, 128], 3, "fp8").tolist() == plain.get_time(512, 256, [64, 128], 3, "fp8").tolist()
    assert relay.grouped(16, 256, 128, 8, "fp8") == plain.grouped(16, 256, 128, 8, "fp8")
    assert relay.elementwise(1e6) == plain.elementwise(1e6)


@pytest.mark.parametrize("rest", [(), (False,), (True, "bf16", "fp8"), (True, "bf16", None, True)])
def test_attention_keeps_every_argument(plain, rest):
    assert Relay(plain).attention(*SIZES, *rest) == plain.attention(*SIZES, *rest)


def test_one_hook_changes_attention_alone(plain):
    own = Doubled(plain)
    assert own.attention(*SIZES, kv_dtype="fp8") == 2 * plain.attention(*SIZES, kv_dtype="fp8")
    assert own.get_time(64, 64, 64) == plain.get_time(64, 64, 64)


def test_a_roofline_with_a_cache_reads_it_where_a_call_does_not_say(plain):
    decode, cached = (2, 8, 2, 1, 4096, 64, 64), Roofline(load_gpu("h100"), cache="fp8")
    assert cached.attention(*decode) == plain.attention(*decode, kv_dtype="fp8") != plain.attention(*decode)
    assert cached.attention(*decode, kv_dtype="bf16") == plain.attention(*decode)
