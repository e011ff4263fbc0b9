"""Words of a label: which operator it names, on which GPUs, how many bytes. What no rule knows stays unread."""

from __future__ import annotations

import re
from functools import lru_cache

from planner.graph.ops import COLLECTIVES, Kind
from planner.units import DTYPE_BITS

INPUT, OUTPUT, SOFTMAX, NORM, ACTIVATION, ADD = "input", "output", "softmax", "norm", "activation", "add"
RESHAPE, SPLIT, CONCAT, ROUTER, BLOCK, BROADCAST = "reshape", "split", "concat", "router", "block", "broadcast"
PRODUCTS = frozenset({Kind.MATMUL.value, Kind.GROUPED.value})
MOVES = frozenset({*(kind.value for kind in COLLECTIVES), BROADCAST})
"""Kinds that move bytes between GPUs."""
ELEMENTWISE = frozenset({Kind.ELEMENTWISE.value, Kind.LOOKUP.value, SOFTMAX, NORM, ACTIVATION, ADD, RESHAPE, SPLIT, CONCAT})
"""Kinds that are one pass over memory."""
KEEPS = frozenset({SOFTMAX, NORM, ACTIVATION, ADD})
"""Kinds whose output has the shape of their input."""
ENDS = frozenset({INPUT, OUTPUT})

# The first that is found in a name decides: a collective of scores is a collective, a gate projection a product.
_KINDS: tuple[tuple[str, str], ...] = (
    (Kind.ALL_REDUCE, r"all ?reduce"),
    (Kind.ALL_GATHER, r"all ?gather"),
    (Kind.REDUCE_SCATTER, r"reduce ?scatter"),
    (Kind.ALL_TO_ALL, r"all ?(to|2) ?all|a2a"),
    (BROADCAST, r"broadcast|bcast"),
    (Kind.SEND, r"sends?|recv|receives?|p2p|transfers?|hand ?over|send ?recv"),
    (SOFTMAX, r"softmax"),
    (Kind.GROUPED, r"grouped (matmul|gemm)"),
    (Kind.MATMUL, r"mat ?muls?|gemm|b?mm|linear|([qkvo]|up|down|gate)? ?proj|projections?|fc ?\d*|dense|scores|q k t?"),
    (NORM, r"(layer|rms|batch|pre|post)? ?norm|layernorm|rmsnorm|ln ?\d*"),
    (ADD, r"residuals?|add|adds|residual add|res add"),
    (ACTIVATION, r"gelu|relu|silu|swish|swiglu|geglu|glu|activations?|act|tanh|sigmoid"),
    (Kind.ATTENTION, r"(flash|fused|scaled dot product) ?attention|sdpa"),
    (Kind.LOOKUP, r"embeddings?|embed|lookup"),
    (CONCAT, r"concat|concatenate|concatenation|cat"),
    (SPLIT, r"split|splits|slice|chunk|partition"),
    (RESHAPE, r"reshape|transpose|permute|view|flatten|rearrange"),
    (ROUTER, r"router|routing|gate|gating|top ?k"),
    (Kind.ELEMENTWISE, r"element ?wise|rope|rotary|scale|mask|dropout|mul|bias|cast|quantize|dequantize"),
    (BLOCK, r"attention|mha|mqa|gqa|mla|mlp|ffn|moe|experts?|layer|block|stage"),
    (INPUT, r"inputs?|source"),
    (OUTPUT, r"outputs?|sink"),
)  # fmt: skip
_KIND = tuple((kind, re.compile(rf"(?<![a-z])(?:{words})(?![a-z])")) for kind, words in _KINDS)
_STATED = {
    **{kind.value: kind.value for kind in Kind},
    **{
        kind: kind for kind in (INPUT, OUTPUT, SOFTMAX, NORM, ACTIVATION, ADD, RESHAPE, SPLIT, CONCAT, ROUTER, BLOCK, BROADCAST)
    },
    "role": BLOCK,
}
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z][a-z])")
_JOINT = re.compile(r"[^a-z0-9]+")

MOST_RANKS = 4096
_RANK = r"\d{1,9}(?!\w{0,20}[a-z%])"  # 80GB is no rank
_RANGE = rf"{_RANK}(?:\s*(?:(?:-|–|\.\.+)\s*(?:gpu|device|rank)?|to)\s*{_RANK})?"
_LIST = rf"{_RANGE}(?:\s*(?:,|;|&|and|\|)\s*{_RANGE})*"
_WORD = r"(?:gpus?|devices?|ranks?|cuda)"
_COUNTED = r"(?<!per )(?<!num )(?<!num_)(?<!of )"  # behind these words stands how many, not which
_DEVICE = re.compile(rf"(?<![a-z\-]){_COUNTED}({_WORD})(?:[ _]?ids?)?\s*[-_:=#]{{0,2}}\s*[\[({{]?\s*({_LIST})", re.IGNORECASE)
_EVERY = re.compile(rf"(?<![a-z])(?:all|every|each)\s+(?:\d{{1,9}}\s+)?{_WORD}(?![a-z])", re.IGNORECASE)
_PART = re.compile(r"(\d{1,9})(?:\s*(?:(?:-|–|\.\.+)\s*(?:gpu|device|rank)?|to)\s*(\d{1,9}))?", re.IGNORECASE)
_FROM_TO = re.compile(rf"{_WORD}\s*[-_:=#]?\s*\d[\d,\- ]{{0,100}}(?:to|->|→)\s*{_WORD}\s*[-_:=#]?\s*\d", re.IGNORECASE)
_AMOUNT = re.compile(r"(?<![\w.])(\d{1,15}(?:\.\d{1,9})?)\s*([KMGT]i?B|B|bytes)(?![\w/])", re.IGNORECASE)
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2.0**10, "mi": 2.0**20, "gi": 2.0**30, "ti": 2.0**40}
_DTYPE = re.compile(rf"(?<![a-z0-9])(?:{'|'.join(DTYPE_BITS)})(?![a-z0-9])", re.IGNORECASE)


def kind_of(title: str) -> str:
    """The kind of operator that a name or the first line of a label stands for; empty where no word is known."""
    spaced = _JOINT.sub(" ", _CAMEL.sub(" ", title[:300]).lower()).strip()
    return next((str(kind) for kind, words in _KIND if words.search(spaced)), "")


def stated_kind(text: str) -> str:
    """The kind in an attribute such as `op`: one of our own names, or else whatever its words mean."""
    return _STATED.get(text.strip().lower(), "") or kind_of(text)


@lru_cache(maxsize=65_536)
def devices_in(text: str) -> tuple[tuple[int, ...], ...]:
    """The sets of GPUs that a text names, such as `GPU 3`, `gpu_0_1`, `GPUs: 0-7` or `device=3`; `|` begins another set."""
    found = []
    for match in _DEVICE.finditer(text[:2000]):
        if match[1].lower().endswith("s") and match[2].isdecimal():
            continue  # `GPUs: 16` may be a count
        found += [ranks_in(part) for part in match[2].split("|")]
    return tuple(group for group in found if group)


def ranks_in(text: str) -> tuple[int, ...]:
    """Ranks from a list of numbers and ranges such as `0-3, 8`; empty where there are none, or more than `MOST_RANKS`."""
    found: set[int] = set()
    for first, last in _PART.findall(text[:2000]):
        low, high = int(first), int(last or first)
        if high - low >= MOST_RANKS or high < low or len(found) > MOST_RANKS:
            return ()
        found.update(range(low, high + 1))
    return tuple(sorted(found))


def names_two_ends(text: str) -> bool:
    """Whether a text says `GPU 0 to GPU 4`: two ends of a transfer, or a range; its operator must tell."""
    return _FROM_TO.search(text[:2000]) is not None


def names_every_gpu(text: str) -> bool:
    """Whether a text says `all GPUs`."""
    return _EVERY.search(text[:2000]) is not None


def bytes_in(text: str) -> float | None:
    """The bytes that a text states once, such as `335.5 MB`; None for none or for several amounts."""
    found = {
        float(number) * _UNITS[unit.lower().removesuffix("ytes").removesuffix("b")] for number, unit in _AMOUNT.findall(text)
    }
    return found.pop() if len(found) == 1 else None


def dtype_in(text: str) -> str:
    """The number format that a text names; empty for none or for several."""
    found = {match.lower() for match in _DTYPE.findall(text[:4000])}
    return found.pop() if len(found) == 1 else ""
