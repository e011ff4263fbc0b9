"""Wanted: the products and attention kernels that the prices of a space ask for, written down while it is priced."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from planner.costs.get_time import Array, GetTime, Roofline
from planner.costs.pricer import Pricer
from planner.costs.relay import AttentionCall, Relay
from planner.evaluate.evaluation import evaluate
from planner.evaluate.setting import setting
from planner.problem import Problem
from planner.profile.shapes import Attention, Product, Shapes
from planner.solve.optimum import SpaceSearch
from search_spaces.space import SearchSpace


class Noted(Relay):
    """Notes every size of products and of attention that it is asked for; whole numbers above zero only."""

    def __init__(self, fallback: GetTime) -> None:
        super().__init__(fallback)
        self.products: set[Product] = set()
        self.kernels: set[Attention] = set()

    def get_time(self, m: ArrayLike, k: ArrayLike, n: ArrayLike, batch: ArrayLike = 1, dtype: str = "bf16") -> Array:
        """Seconds of `batch` products (m x k)@(k x n)."""
        self.products.update(Product(a, b, c, many, dtype) for a, b, c, many in _rows(m, k, n, batch))
        return super().get_time(m, k, n, batch, dtype)

    def _attention(self, call: AttentionCall) -> Array:
        """Notes the sizes; kernels on a shared latent are not measured."""
        if not call.shared_kv and call.kv_dtype in (None, call.dtype):
            for b, h, kv, q, length, qk, v in _rows(*call.sizes):
                self.kernels.add(Attention(b, h, kv, q, length, qk, v, call.causal, call.dtype))
        return super()._attention(call)


def _rows(*sizes: ArrayLike) -> list[tuple[int, ...]]:
    """The different rows of sizes that broadcast, whole and above zero."""
    columns = np.broadcast_arrays(*(np.asarray(size, dtype=np.float64) for size in sizes))
    rows = np.unique(np.stack([np.ravel(column) for column in columns], axis=1), axis=0)
    good = np.all((rows >= 1) & (rows == np.rint(rows)), axis=1)
    return [tuple(int(size) for size in row) for row in rows[good]]


def wanted(problem: Problem, space: SearchSpace) -> Shapes:
    """The shapes that pricing every option of a space takes: all that a search of it asks Get_Time for.

    A space with one plan wants the products of that plan's graph.
    """
    noted = {name: Noted(Roofline(kind)) for name, kind in problem.cluster.kinds.items()}
    env = setting(problem.model, problem.workload, problem.cluster, Pricer(problem.cluster, dict(noted)))
    search = SpaceSearch(env, space)
    choice = search.run().choice or SpaceSearch(env, space, ignore_memory=True).run().choice
    if choice is not None:
        evaluate(env, problem.sizes, choice)
    products = {one for note in noted.values() for one in note.products}
    kernels = {one for note in noted.values() for one in note.kernels}
    return Shapes(tuple(sorted(products)), tuple(sorted(kernels)))
