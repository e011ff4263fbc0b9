"""Workload: what the model is asked to do (prefill or decode of a batch), with units in tokens and sequences.

A workload is written as a shorthand (`prefill:batch=64,prompt=4096`), as a mapping, or as a YAML file with that mapping.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from planner.errors import InputError, unknown_name
from planner.fields import Fields
from planner.files import read_yaml
from planner.units import DTYPE_BITS

Phase = Literal["prefill", "decode", "training"]
Logits = Literal["none", "last", "all"]

PHASES: tuple[Phase, ...] = ("prefill", "decode", "training")
LOGITS: tuple[Logits, ...] = ("none", "last", "all")
SCHEMA = "planner.workload/1"
PRECISIONS = ("bf16", "fp16", "fp8", "nvfp4")
GRADIENTS = ("fp32", "bf16")
OPTIMIZERS = ("adam", "sgd")
TRAINING_STACK = "megatron-core"
SHAPES = (
    "prefill:batch=B,prompt=TOKENS, decode:batch=B,context=TOKENS or training:global_batch=B,sequence=TOKENS, a path to a "
    "workload file, or a mapping"
)
_WHOLE = re.compile(r"[-+]?[0-9]{1,18}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Training:
    """How a model is trained: the dtype of its matrix products (weights and activations keep the model's own), of the
    gradient buffer, the optimizer (adam: fp32 weights and two moments), whether dropout masks are kept, and the software
    stack that runs it (`planner/costs/training.yaml`).
    """

    precision: str = "bf16"
    gradient_dtype: str = "fp32"
    optimizer: str = "adam"
    dropout: bool = False
    stack: str = TRAINING_STACK


UNSEEN = 1e-4
"""Load of an expert that no token was counted for, over the mean: the next token may still choose it."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A batch of sequences in one phase.

    prefill: `batch` sequences of `prompt` tokens each go through the model once.
    decode: each of `batch` sequences, holding `context` tokens in its KV cache, gets one token per step.
    training: one optimizer step on `batch` sequences (written `global_batch`) of `prompt` tokens (written `sequence`).
    `expert_load` gives each routed expert's share of the tokens relative to the mean, per MoE layer or one row for all
    (empty: equal loads; no count at all is read as a ten-thousandth of the mean). `keep_kv_cache` says whether prefill
    leaves its KV cache in memory.
    """

    phase: Phase
    batch: int
    prompt: int = 0
    context: int = 0
    logits: Logits = "last"
    keep_kv_cache: bool = True
    kv_dtype: str | None = None
    expert_load: tuple[tuple[float, ...], ...] = ()
    training: Training | None = None

    @property
    def forward(self) -> Workload:
        """The pass through the model that roles are built for: of training, a prefill that keeps no cache."""
        if self.training is None:
            return self
        return replace(self, phase="prefill", training=None)

    def load_rows(self, mixtures: int) -> tuple[int, ...]:
        """For each of the model's layers with experts, counted from 0, the first one whose loads are the same."""
        loads = self.expert_load or ((),)
        first: dict[tuple[float, ...], int] = {}
        return tuple(first.setdefault(loads[layer % len(loads)], layer) for layer in range(mixtures))

    @property
    def query_length(self) -> int:
        """Tokens of one sequence that go through the model in one pass."""
        return 1 if self.phase == "decode" else self.prompt

    @property
    def kv_length(self) -> int:
        """Keys that one query may see: the prompt itself, or the cache plus the new token."""
        return self.context + 1 if self.phase == "decode" else self.prompt


def load_workload(ref: str | Path | Mapping[str, object], source: str = "") -> Workload:
    """The workload that `ref` means: a shorthand, a path to a YAML file, or a mapping.

    `source` names the file that a mapping was found in. `InputError` names the field that is wrong.
    """
    if isinstance(ref, Mapping):
        return _read(ref, source)
    if isinstance(ref, Path) or (isinstance(ref, str) and ref.lower().endswith((".yaml", ".yml"))):
        return _read(read_yaml(Path(ref)), str(ref))
    if not isinstance(ref, str):
        raise InputError("workload", ref, SHAPES, source)
    return _read(_from_shorthand(ref, source), source)


def workload_to_dict(workload: Workload) -> dict[str, object]:
    """The mapping that `load_workload` reads back into an equal workload."""
    if workload.training is not None:
        return _training_to_dict(workload, workload.training)
    result: dict[str, object] = {"phase": workload.phase, "batch": workload.batch}
    if workload.phase == "prefill":
        result |= {"prompt": workload.prompt, "keep_kv_cache": workload.keep_kv_cache}
    else:
        result["context"] = workload.context
    result["logits"] = workload.logits
    if workload.kv_dtype is not None:
        result["kv_dtype"] = workload.kv_dtype
    if workload.expert_load:
        result["expert_load"] = [list(row) for row in workload.expert_load]
    return result


def _from_shorthand(text: str, source: str) -> dict[str, object]:
    phase, colon, rest = text.partition(":")
    mapping: dict[str, object] = {"phase": phase.strip()}
    if not colon or mapping["phase"] not in PHASES:
        raise InputError("workload", text, SHAPES, source)
    for item in rest.split(","):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not name or not equals or not value:
            raise InputError("workload", text, f"{SHAPES}; {item.strip()!r} is not NAME=VALUE", source)
        if name in mapping:
            raise InputError("workload", text, f"each name once; {name} is written twice", source)
        mapping[name] = _scalar(value)
    return mapping


def _scalar(text: str) -> object:
    if _WHOLE.fullmatch(text):
        return int(text)
    return {"true": True, "false": False}.get(text, text)


def _read(mapping: Mapping[str, object], source: str) -> Workload:
    fields = Fields(mapping, source, "workload")
    if fields.raw("schema") not in (None, SCHEMA):
        raise fields.error("schema", f"{SCHEMA}, the only version that this planner reads")
    if fields.raw("phase") not in PHASES:
        raise unknown_name("workload.phase", fields.raw("phase"), PHASES, source)
    phase = fields.choice("phase", PHASES)
    if phase == "training":
        return _read_training(fields)
    workload = Workload(
        phase,
        batch=fields.integer("batch", low=1),
        prompt=fields.integer("prompt", low=1, high=2**32) if phase == "prefill" else 0,
        context=fields.integer("context", low=1, high=2**32) if phase == "decode" else 0,
        logits=fields.choice("logits", LOGITS, default="last"),
        keep_kv_cache=fields.boolean("keep_kv_cache", default=True),
        kv_dtype=fields.choice("kv_dtype", DTYPE_BITS) if fields.has("kv_dtype") else None,
        expert_load=_loads(fields),
    )
    if phase == "decode" and not workload.keep_kv_cache:
        raise fields.error("keep_kv_cache", "true: decode reads the KV cache")
    fields.done()
    return workload


def _read_training(fields: Fields) -> Workload:
    training = Training(
        fields.choice("precision", PRECISIONS, default="bf16"),
        fields.choice("gradient_dtype", GRADIENTS, default="fp32"),
        fields.choice("optimizer", OPTIMIZERS, default="adam"),
        fields.boolean("dropout", default=False),
        fields.text("stack", default=TRAINING_STACK),
    )
    workload = Workload(
        "training",
        batch=fields.integer("global_batch", low=1),
        prompt=fields.integer("sequence", low=1, high=2**32),
        logits="all",
        keep_kv_cache=False,
        expert_load=_loads(fields),
        training=training,
    )
    fields.done()
    return workload


def _training_to_dict(workload: Workload, training: Training) -> dict[str, object]:
    result: dict[str, object] = {"phase": "training", "global_batch": workload.batch, "sequence": workload.prompt}
    result |= {"precision": training.precision, "gradient_dtype": training.gradient_dtype}
    result |= {"optimizer": training.optimizer, "dropout": training.dropout}
    result["stack"] = training.stack
    if workload.expert_load:
        result["expert_load"] = [list(row) for row in workload.expert_load]
    return result


def _loads(fields: Fields) -> tuple[tuple[float, ...], ...]:
    """Rows of expert loads, each scaled to a mean of one; a single row may stand without its outer list."""
    value = fields.raw("expert_load")
    if value is None or value == []:
        return ()
    if not isinstance(value, list | tuple):
        raise fields.error("expert_load", "a list with one number for each expert, or one such list for each MoE layer")
    place = fields.at("expert_load")
    if not isinstance(value[0], list | tuple):
        return (_load(fields, value, place),)
    return tuple(_load(fields, row, f"{place}[{i}]") for i, row in enumerate(value))


def _load(fields: Fields, row: object, path: str) -> tuple[float, ...]:
    if not isinstance(row, list | tuple) or not row:
        raise InputError(path, row, "a list with one number for each expert", fields.source)
    for expert, load in enumerate(row):
        if not _is_load(load):
            raise InputError(f"{path}[{expert}]", load, "a number from 0 to 1e15", fields.source)
    total, count = sum(row), len(row)
    if total <= 0:
        raise InputError(path, row, "loads that are not all zero", fields.source)
    seen: list[float] = [x or UNSEEN * total / count for x in row]
    whole = sum(seen)
    even = abs(whole - count) <= 1e-9 * count  # already relative to the mean: keep the very numbers
    return tuple(float(x) if even else float(x * count / whole) for x in seen)


def _is_load(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1e15
