"""Sizes of one operator: what its shapes say together, what follows from them, and where they contradict each other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from planner.inspect.shapes import Product, Shapes, Tensor, product_of
from planner.inspect.words import BLOCK, ENDS, KEEPS, PRODUCTS

BARE = "a shape without a word is the operator's output"
FROM_ENDS = "k and n of a product are the last sizes of its input and output where the label gives no weight"
WRONG_WEIGHT, WRONG_INPUT, WRONG_OUTPUT = "SHAPE002", "SHAPE001", "SHAPE003"


@dataclass(frozen=True, slots=True)
class Sized:
    """Inputs, outputs and product of an operator; `assumed` are the rules that were needed, `wrong` as in `Operator`."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    product: Product | None
    assumed: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    wrong: tuple[tuple[str, str, str, str], ...] = ()


def sized(kind: str, said: Shapes, stated: Product | None, own: bool, title: str) -> Sized:
    """The sizes of an operator of a kind from what its label says and its attributes state. Our own need no check."""
    inputs, outputs, assumed, unread = said.inputs, said.outputs, list[str](), list(said.unread)
    if kind in ENDS:
        inputs = outputs = tuple(dict.fromkeys((*inputs, *outputs, *said.bare)))
    elif len(said.bare) == 1 and not outputs:
        outputs = said.bare
        assumed.append(BARE)
    elif said.bare:
        unread.append(f"what {', '.join(tensor.text for tensor in said.bare[:4])} are: inputs or outputs")
    product = stated or said.product
    if product is None and kind in (*PRODUCTS, BLOCK, "") and inputs and said.weights:
        product = _with_weight(inputs[0], said.weights[0])
    if product is None and kind in PRODUCTS and len(inputs) == len(outputs) == 1 and not said.weights:
        product = _from_ends(inputs[0], outputs[0])
        assumed += [FROM_ENDS] if product else []
    wrong = () if own else tuple(_contradictions(kind, said, inputs, outputs, product, title))
    return Sized(inputs, outputs, product, tuple(assumed), tuple(unread), wrong)


def _with_weight(left: Tensor, weight: Tensor) -> Product | None:
    """An input times a weight, written (k, n) or, as PyTorch's Linear keeps it, (n, k)."""
    if len(weight.dims) != 2:
        return None
    dims = (1, *left.dims) if len(left.dims) == 1 else left.dims
    return product_of(dims, weight.dims) or product_of(dims, weight.dims[::-1])


def _from_ends(left: Tensor, right: Tensor) -> Product | None:
    """A linear layer that keeps the leading sizes of its input: the rest of its output are its columns."""
    lead = left.dims[:-1]
    if not lead or right.dims[: len(lead)] != lead or len(right.dims) == len(lead):
        return None
    return Product(math.prod(lead), left.dims[-1], math.prod(right.dims[len(lead) :]))


def _contradictions(
    kind: str, said: Shapes, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], product: Product | None, title: str
) -> Iterator[tuple[str, str, str, str]]:
    for text in said.wrong:
        yield WRONG_WEIGHT, "multiplies matrices that do not fit", text, "equal inner sizes"
    if product is None and inputs and said.weights and len(said.weights[0].dims) == 2 and not said.wrong:
        columns = inputs[0].dims[-1]
        yield WRONG_WEIGHT, "its weight does not fit its input", said.weights[0].text, f"{columns} rows"
    if product is not None and kind in PRODUCTS:
        written, read = product.batch * product.m * product.n, product.batch * product.m * product.k
        if len(outputs) == 1 and outputs[0].elements != written:
            yield WRONG_OUTPUT, "writes another shape than m x n", outputs[0].text, f"{written} elements"
        if len(inputs) == 1 and inputs[0].elements != read:
            yield WRONG_INPUT, "reads another shape than m x k", inputs[0].text, f"{read} elements"
    keeps = kind in KEEPS and "glu" not in title.lower()  # a gated activation halves what it reads
    if keeps and inputs and len(outputs) == 1 and all(tensor.elements != outputs[0].elements for tensor in inputs):
        yield WRONG_OUTPUT, f"{kind} writes another size than it reads", outputs[0].text, inputs[0].text
