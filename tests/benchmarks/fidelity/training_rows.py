"""From a training row to a plan: the machine, the ways of parallelism, the schedule, what is kept and what is shared."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from planner.cluster import Cluster
from planner.model import ModelSpec
from planner.workload import Training, Workload
from search_spaces.attention import AttentionPartition
from search_spaces.experts import ExpertPlacement
from search_spaces.sizes import share
from search_spaces.stages import Choice, StageChoice
from search_spaces.training import Recompute, Schedule, TrainingChoice
from tests.benchmarks.fidelity.clusters import Machines
from tests.benchmarks.fidelity.models import model_of
from tests.benchmarks.fidelity.rows import Row, Unusable, positive, text, whole

# Words of the framework column, first match counts: the software stack that prices the row.
STACKS = (
    ("zero-3", "pytorch-fsdp"), ("deepspeed", "megatron-deepspeed"), ("composer", "pytorch-fsdp"), ("foundry", "pytorch-fsdp"),
    ("torchtitan", "pytorch-fsdp"), ("automodel", "pytorch-fsdp"), ("fsdp", "pytorch-fsdp"), ("maxtext", "jax"),
    ("paxml", "jax"), ("jax", "jax"),
)  # fmt: skip
UNFUSED = ("megatron-2022", "megatron-deepspeed")  # attention in several kernels, nothing of the exchange overlapped
FLASH_SINCE = 2023  # Megatron-LM has fused attention kernels that keep no scores from this year on
NETWORKS = re.compile(r"(\d+)\s*x\D*?(\d{3})(?!\d)")  # "8x NDR400", "4x HDR IB 200 Gb/s", "8x 400G"
TOTAL = re.compile(r"(\d{3,5})\s*Gb(?:/s|ps)(?: node-node| interconnect|\))")
EACH = re.compile(r"(\d+)\s*Gb/s \w+ per GPU")
VOCAB = 51200  # GPT-2's, padded for 8 tensor-parallel GPUs as Megatron-LM does, where a row states none
PRECISIONS = (("fp4", "nvfp4"), ("fp8", "fp8"), ("float8", "fp8"), ("bf16", "bf16"), ("bfloat16", "bf16"), ("fp16", "fp16"))


@dataclass(frozen=True, slots=True)
class Ways:
    """The ways of parallelism that a row states; `data` counts the replicas of the dense layers."""

    tensor: int
    stages: int
    context: int
    expert: int
    expert_tensor: int
    data: int
    chunks: int
    micro_batch: int
    global_batch: int

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a replica in a step."""
        return self.global_batch // self.data // self.micro_batch

    @property
    def gpus(self) -> int:
        """GPUs of the plan."""
        return self.tensor * self.stages * self.context * self.data


@dataclass(frozen=True, slots=True)
class Job:
    """A row as a problem and a plan of the planner, and the software stack that ran it; `recompute_open` where the row does not
    say what is computed again.
    """

    model: ModelSpec
    cluster: Cluster
    workload: Workload
    choice: Choice
    stack: str
    fused: bool
    recompute_open: bool = False


def job_of(row: Row, machines: Machines) -> Job | Unusable:
    """The plan of a row; `Unusable` where it states none or one that the planner has no word for."""
    ways = ways_of(row)
    if isinstance(ways, Unusable):
        return ways
    model = _model(row)
    if isinstance(model, Unusable):
        return model
    cluster = machine(row, machines, ways.gpus)
    if isinstance(cluster, Unusable):
        return cluster
    precision = precision_of(text(row, "precision"))
    if precision is None:
        return Unusable(f"precision {text(row, 'precision') or 'not stated'}")
    stack, fused = stack_of(row)
    choice = choice_of(row, model, ways, stack)
    if isinstance(choice, Unusable):
        return choice
    # loss scaling keeps and sums gradients in fp16; NVIDIA's recipes for throughput reduce them in bf16
    narrow = (precision == "fp16" and stack in UNFUSED) or "nemo" in text(row, "framework").lower()
    training = Training(precision, "bf16" if narrow else "fp32", dropout=stack in UNFUSED)
    workload = Workload(
        "training", ways.global_batch, whole(row, "seq_len"), logits="all", keep_kv_cache=False, training=training
    )
    # JAX offloads activations to the host where they do not fit, so nothing follows from its memory
    silent = not text(row, "recompute") and text(row, "status") != "OOM" and stack != "jax"
    return Job(model, cluster, workload, choice, stack, fused, silent)


def ways_of(row: Row) -> Ways | Unusable:
    """The ways of parallelism of a row, complete and consistent."""
    tensor, stages, context = (whole(row, name, 1) for name in ("tp", "pp", "cp"))
    gpus = whole(row, "n_gpus", whole(row, "dp", 1) * tensor * stages * context)
    data = whole(row, "dp", gpus // (tensor * stages * context))
    batch, length = whole(row, "gbs"), whole(row, "seq_len")
    if not whole(row, "tp") and not whole(row, "dp"):
        return Unusable("no plan in the row")
    if not batch or not length:
        return Unusable("no global batch size or sequence length")
    if tensor * stages * context * data != gpus:
        return Unusable("the ways of the plan do not multiply to its GPUs")
    micro = whole(row, "mbs") or (batch // data // whole(row, "ga") if whole(row, "ga") else 0)
    if not micro:
        return Unusable("no micro-batch size")
    if batch % (data * micro):
        return Unusable("micro-batches do not divide the batch")
    expert = whole(row, "ep", 1)
    etp = whole(row, "etp", 1 if expert > 1 else tensor)
    return Ways(tensor, stages, context, expert, etp, data, whole(row, "vpp", 1), micro, batch)


def stack_of(row: Row) -> tuple[str, bool]:
    """The software stack of a row and whether its attention is one kernel: by framework and year."""
    words = text(row, "framework").lower()
    found = re.search(r"(?:20)?(\d\d)(?=[-.]|$)", text(row, "date"))
    year = 2000 + int(found[1]) if found else FLASH_SINCE
    stack = next((name for word, name in STACKS if word in words), "megatron-core")
    if stack == "megatron-core" and year < FLASH_SINCE:
        stack = "megatron-2022"
    return stack, stack not in UNFUSED


def precision_of(written: str) -> str | None:
    """Our name of the precision of the matrix products."""
    return next((dtype for word, dtype in PRECISIONS if word in written.lower()), None)


def _model(row: Row) -> ModelSpec | Unusable:
    found = model_of(text(row, "model"), "", row if whole(row, "vocab") else {**row, "vocab": str(VOCAB)})
    if isinstance(found, Unusable):
        return found
    if "lora" in text(row, "task").lower():
        return Unusable("task LoRA: frozen weights are not priced")
    if text(row, "task") == "single-layer":
        return replace(found, layers=found.layers[:1], vocab=0)
    return found


def machine(row: Row, machines: Machines, gpus: int) -> Cluster | Unusable:
    """The cluster of a row, its network as the row describes it."""
    cluster = machines.cluster(text(row, "gpu").split(" (")[0], gpus, whole(row, "gpus_per_node"))
    if isinstance(cluster, Unusable):
        return cluster
    key = (cluster.name, cluster.size, text(row, "internode"))
    if key not in machines.networked:
        machines.networked[key] = _networked(cluster, text(row, "internode"))
    return machines.networked[key]


def _networked(cluster: Cluster, words: str) -> Cluster:
    found, total, each = NETWORKS.search(words), TOTAL.search(words), EACH.search(words)
    if found:
        adapters, gigabits = int(found[1]), float(found[2])
    elif total:
        adapters, gigabits = cluster.gpus_per_node, float(total[1]) / cluster.gpus_per_node
    elif each:
        adapters, gigabits = cluster.gpus_per_node, float(each[1])
    else:
        return cluster
    network = replace(cluster.network, bandwidth=gigabits * 1e9 / 8, source="the row")
    return replace(cluster, network=network, nics_per_node=adapters)


def choice_of(row: Row, model: ModelSpec, ways: Ways, stack: str) -> Choice | Unusable:
    """The plan in the planner's words: a mixture's stage holds as many data-parallel ranks as its experts span."""
    layers, width = len(model.layers), ways.tensor * ways.context
    moe = any(layer.ffn.kind == "moe" for layer in model.layers)
    if ways.stages * ways.chunks > layers:
        return Unusable("more pipeline chunks than layers")
    span = ways.expert * ways.expert_tensor if moe else 1
    parts = max(1, span // width)
    if (moe and span % width and width % span) or ways.data % parts:
        return Unusable("expert ways do not fit the GPUs of a stage")
    training = training_of(row, ways, stack)
    if isinstance(training, Unusable):
        return training
    sequence_parallel = ways.tensor > 1 and (stack not in UNFUSED or "+ sequence parallel" in text(row, "recompute"))
    order: Any = "segments_inner"
    attention = AttentionPartition(
        ways.tensor, batch_parts=parts, context_parts=ways.context, order=order, sequence_parallel=sequence_parallel
    )
    experts = None
    if moe:
        experts = ExpertPlacement("dispatch" if ways.expert > 1 else "local", ways.expert_tensor)
    stages, width = [], width * parts
    for i in range(ways.stages):
        ranks = tuple(range(i * width, (i + 1) * width))
        stages.append(StageChoice(share(layers, ways.stages, i), ranks, attention, ways.tensor, experts))
    return Choice(ways.data // parts, ways.micro_batches, tuple(stages), 1, training)


def training_of(row: Row, ways: Ways, stack: str) -> TrainingChoice | Unusable:
    """Schedule, recomputation and what replicas share."""
    words = text(row, "schedule").lower()
    chunks = ways.chunks
    schedule: Schedule = "interleaved" if chunks > 1 and ways.stages > 1 else "1f1b"
    if "1f1b-i" in words and chunks == 1 and ways.stages > 1:
        return Unusable("interleaved schedule without its number of chunks")
    if words.startswith(("zb", "zero")):
        if "1p" not in words and "h1" not in words and words not in ("zbb", "zb"):
            return Unusable(f"schedule {words}: not in the planner")
        schedule = "zb_h1"
    elif words and "1f1b" not in words and "gpipe" not in words:
        return Unusable(f"schedule {words}: not in the planner")
    elif "gpipe" in words:
        schedule = "gpipe"
    if schedule != "interleaved" or ways.micro_batches % ways.stages:
        chunks, schedule = 1, "1f1b" if schedule == "interleaved" else schedule
    zero = zero_of(row, stack)
    return TrainingChoice(schedule, chunks, recompute_of(row), zero, stack not in UNFUSED)


def recompute_of(row: Row) -> Recompute:
    """Words of the recompute column; nothing where it is silent."""
    words = text(row, "recompute").lower()
    return "full" if "full" in words else "selective" if "selective" in words else "none"


def zero_of(row: Row, stack: str) -> int:
    """What replicas share: as stated; all of it where weights are sharded; Megatron-Core's distributed optimizer by default."""
    stated = re.match(r"[0-3]", text(row, "zero"))
    if stated:
        return int(stated[0])
    sharded = text(row, "fsdp_shard")
    if sharded and sharded != "1":
        return 3
    return {"megatron-core": 1, "pytorch-fsdp": 3, "jax": 3}.get(stack, 0)


def measured_step(row: Row) -> float | None:
    """Seconds of the measured step, stated or from a rate."""
    step, length = positive(row, "step_time_s"), whole(row, "seq_len")
    if step is not None:
        return step
    batch, gpus, rate = whole(row, "gbs"), whole(row, "n_gpus"), positive(row, "tokens_per_s_per_gpu")
    return batch * length / gpus / rate if batch and length and gpus and rate else None
