"""Shapes in the lines of a label: `[1024, 10000, 8192]`, `Input: ...`, `(1024x10000) @ (10000x512)`, `m=.., k=.., n=..`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

Dims = tuple[int, ...]
NUMBER = r"\d{1,15}(?!\d)"
_FACTORS = re.compile(rf"({NUMBER})((?:\s*[x×*⋅·]\s*{NUMBER})*)(?:\s*(?://?|÷)\s*({NUMBER}))?")
_NAMED = re.compile(r"([A-Za-z_][\w ./]*?)\s*[=:]\s*")
_TIMES = re.compile(r"\s*[x×*⋅·]\s*")
_SIZE = re.compile(rf"(?<![\w.])([mkn])\s*[=:]\s*({NUMBER}(?:\s*[x×*]\s*{NUMBER})*)(,\d{{3}}(?!\d))?(?![\w.])", re.IGNORECASE)
_BATCH = re.compile(rf"(?<![\w.])batch\s*[=:]\s*({NUMBER})(?![\w.])", re.IGNORECASE)
_PART = re.compile(
    r"""(?P<bracket>[\[(](?P<inside>[^\[\]()]{1,300})[\])])
    | (?P<role>(?<![A-Za-z])(?:inputs?|in|outputs?|out|weights?|results?)(?![A-Za-z]))
    | (?P<arrow>→|->|=>|⟶)
    | (?P<product>@|[×⋅·*]|(?<![A-Za-z0-9])[xX](?![A-Za-z0-9])|matmul)
    | (?P<turned>\^T|ᵀ|\.T(?![a-z]))
    | (?P<chain>\d{1,15}(?:\s*[x×]\s*\d{1,15})+)
    | (?P<word>[A-Za-z_][\w^]*)
    | (?P<number>\d{1,15})
    """,
    re.VERBOSE | re.IGNORECASE,
)
_FILL = frozenset({"dimension", "dimensions", "dim", "dims", "shape", "shapes", "size", "sizes", "tensor", "tensors", "matrix",
                   "per", "gpu", "device", "each", "the", "of", "hidden", "states"})  # fmt: skip
_SYMBOL = re.compile(r"\s*[\w./=: ]{1,60}\s*")
_CALLS = frozenset({"get_time", "gettime", "gemm", "matmul", "mm"})
_LAYERS = frozenset({"linear", "fc", "dense"})
_WEIGHT = re.compile(r"w(?:eights?)?(?:_?\w{0,4})?", re.IGNORECASE)
WEIGHT = "weight"
ROLES = {"i": "input", "o": "output", "r": "output", "w": "weight"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A shape that a label states, and the name in front of it."""

    dims: Dims
    name: str = ""

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def text(self) -> str:
        """Name and shape, such as `q [2048, 512]`."""
        return f"{self.name} [{', '.join(map(str, self.dims))}]".strip()


@dataclass(frozen=True, slots=True)
class Product:
    """`batch` products (m x k) @ (k x n)."""

    m: int
    k: int
    n: int
    batch: int = 1

    @property
    def flops(self) -> float:
        """Floating-point operations: two per multiply-add."""
        return 2.0 * self.batch * self.m * self.k * self.n


@dataclass(frozen=True, slots=True)
class Shapes:
    """The shapes of a label by what they are; `bare` ones stand without a word. `unread` says what was not understood,
    `wrong` where the label contradicts itself.
    """

    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    weights: tuple[Tensor, ...] = ()
    bare: tuple[Tensor, ...] = ()
    product: Product | None = None
    unread: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()


@dataclass(slots=True)
class _Reader:
    """Shapes collected so far; `role` is the word that the next shape belongs to, `last` the shape before."""

    found: dict[str, list[Tensor]] = field(default_factory=lambda: {"input": [], "output": [], "weight": [], "": []})
    product: Product | None = None
    unread: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    role: str = ""
    name: str = ""
    times: int = 1
    joined: str = ""
    left: Tensor | None = None
    operands: list[Tensor] = field(default_factory=list)


def shapes_in(lines: Sequence[str]) -> Shapes:
    """All shapes and the matrix product that the lines of a label state."""
    reader = _Reader()
    for line in lines:
        _line(reader, line)
    _sizes(reader, lines)
    found = reader.found
    inputs = found["input"] or [tensor for tensor in reader.operands if tensor.name != WEIGHT]
    weights = found["weight"] or [tensor for tensor in reader.operands if tensor.name == WEIGHT]
    unread, wrong = tuple(reader.unread), tuple(reader.wrong)
    return Shapes(tuple(inputs), tuple(found["output"]), tuple(weights), tuple(found[""]), reader.product, unread, wrong)


def dims_of(text: str) -> Dims | None:
    """The sizes between two brackets; None where one of them is no number."""
    parts = [part.strip() for part in re.split(r"[,;]", text) if part.strip()]
    if len(parts) == 1 and not _NAMED.match(parts[0]):
        parts = _TIMES.split(parts[0])
    sizes = [_size(part) for part in parts]
    return None if not sizes or None in sizes else tuple(size for size in sizes if size is not None)


def _size(text: str) -> int | None:
    """One size: a number, a product such as `1024×10000`, or an exact quotient such as `8192/16`; its name is left out."""
    named = _NAMED.match(text)
    found = _FACTORS.fullmatch(text[named.end() :] if named else text)
    if found is None:
        return None
    size = int(found[1]) * math.prod(int(part) for part in re.findall(r"\d+", found[2]))
    divisor = int(found[3] or 1)
    return size // divisor if divisor and size % divisor == 0 and 0 < size // divisor <= 10**15 else None


def _line(reader: _Reader, line: str) -> None:
    reader.name, reader.times, reader.joined, reader.left = "", 1, "", None
    seen = other = False
    for part in _PART.finditer(line):
        sort, text = part.lastgroup or "", part.group()
        if part["bracket"]:
            seen = _bracket(reader, part["inside"], text[0]) or seen
        elif sort == "role":
            reader.role, reader.name, reader.left = ROLES[text[0].lower()], "", None
        elif sort == "chain" and reader.role:
            seen = _shape(reader, tuple(int(size) for size in re.findall(r"\d+", text))) or seen
        elif sort == "arrow":
            reader.role, reader.joined = ("output" if seen else reader.role), "arrow"
        elif sort == "product" and reader.left:
            reader.joined = "product"
        elif sort == "turned" and reader.left:
            _turn(reader)
        elif sort == "number":
            reader.times = int(text)
        elif sort == "word" and text.lower() not in _FILL:
            reader.name, other = text, True
    if seen or other:  # `Input:` alone on its line speaks of the shape on the next
        reader.role = ""


def _bracket(reader: _Reader, inside: str, opened: str) -> bool:
    """One pair of brackets: a shape, a call of three sizes, or neither. Says whether it was a shape."""
    dims, call = dims_of(inside), reader.name.lower()
    names = [match[1].strip().lower() for match in map(_NAMED.match, re.split(r"[,;]", inside.strip())) if match]
    if dims is None:
        parts = re.split(r"[,;×*]", inside)
        if len(parts) > 1 and (opened == "[" or reader.role) and all(_SYMBOL.fullmatch(part) for part in parts):
            reader.unread.append(f"the shape [{inside.strip()}], whose sizes are not all numbers")
        return False
    if names and set(names) <= {"m", "k", "n"}:
        return False  # sizes of a product, which `_sizes` reads wherever they stand
    if opened == "(" and call in _CALLS and len(dims) == 3:
        reader.product = Product(*dims)
        return False
    if opened == "(" and call in _LAYERS and len(dims) == 2:
        reader.found["weight"].append(Tensor(dims, call))
        return False
    if opened == "(" and len(dims) < 2:
        return False
    return _shape(reader, dims)


def _shape(reader: _Reader, dims: Dims) -> bool:
    """Put a shape where its word, its name or the sign before it says."""
    tensor = Tensor(dims, reader.name)
    role = reader.role or ("weight" if _WEIGHT.fullmatch(tensor.name) and tensor.name else "")
    if reader.joined == "product" and reader.left is not None:
        _multiply(reader, reader.left, tensor)
    else:
        reader.found[role].append(tensor)
        reader.left = tensor
    if reader.joined == "arrow":  # what stands in front of the arrow went in
        reader.found["input"] += reader.found[""]
        reader.found[""] = []
    reader.name, reader.joined = "", ""
    return True


def _multiply(reader: _Reader, left: Tensor, right: Tensor) -> None:
    """`left @ right`: both are operands, and together they give the sizes of the product."""
    for tensors in reader.found.values():
        if tensors and tensors[-1] is left:
            tensors.pop()
    reader.operands = [left, Tensor(right.dims, WEIGHT if len(right.dims) == 2 else right.name)]
    reader.left = right
    _sized(reader)


def _sized(reader: _Reader) -> None:
    """The sizes of the product of the operands, or that they do not fit."""
    left, right = reader.operands
    reader.product = product_of(left.dims, right.dims)
    if reader.product is not None:
        reader.product = replace(reader.product, batch=reader.product.batch * reader.times)
    reader.wrong = (
        [] if reader.product else [f"{left.text} @ {right.text}: the columns of the first are not the rows of the second"]
    )


def _turn(reader: _Reader) -> None:
    """`^T` behind the second operand of a product: its last two sizes change places."""
    if (
        reader.operands
        and reader.left is not None
        and reader.operands[-1].dims == reader.left.dims
        and len(reader.left.dims) > 1
    ):
        *rest, rows, columns = reader.left.dims
        reader.operands[-1] = replace(reader.operands[-1], dims=(*rest, columns, rows))
        _sized(reader)


def product_of(left: Dims, right: Dims) -> Product | None:
    """The product of two shapes as `numpy.matmul` has it; None where the inner sizes differ."""
    if len(left) < 2 or len(right) < 2 or left[-1] != right[-2]:
        return None
    if len(right) == 2:
        return Product(math.prod(left[:-1]), left[-1], right[-1])
    if left[:-2] != right[:-2]:
        return None
    return Product(left[-2], left[-1], right[-1], math.prod(left[:-2]))


def _sizes(reader: _Reader, lines: Sequence[str]) -> None:
    """`m=.., k=.., n=..` anywhere in the label; `batch=..` counts on a line that has one of them."""
    found: dict[str, set[int]] = {"m": set(), "k": set(), "n": set()}
    batches: set[int] = set()
    for line in lines:
        own = list(_own_sizes(line))
        for name, size in own:
            found[name].add(size)
        batches |= {int(number) for number in _BATCH.findall(line)} if own else set()
    if all(len(sizes) == 1 and 0 not in sizes for sizes in found.values()):
        m, k, n = (sizes.pop() for sizes in found.values())
        reader.product = Product(m, k, n, max(batches.pop(), 1) if len(batches) == 1 else 1)
    elif all(found.values()):
        reader.unread.append("m, k and n: one of them has several values or is 0")
    if any(match[2] for line in lines for match in ((m[1], m[2], m[3]) for m in _SIZE.finditer(line))):
        reader.unread.append("m, k or n: digits grouped by commas cannot be told from a list")


def _own_sizes(line: str) -> Iterator[tuple[str, int]]:
    for match in _SIZE.finditer(line):
        if not match[3]:
            yield match[1].lower(), math.prod(int(part) for part in re.findall(r"\d+", match[2]))
