"""Finding: what a check has to say about a plan, and the catalog that explains every code."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]

CATALOG: dict[str, str] = {
    "STRUCT001": "A rank does not exist, or lies outside the first replica's block of ranks.",
    "STRUCT002": "A rank is used by two stages, or twice by one.",
    "STRUCT003": "Ranks stay idle: no stage of any replica uses them.",
    "STRUCT004": "The layers of the stages do not add up to the model's, or a stage has none.",
    "STRUCT005": "The attention grid has more or fewer GPUs than its stage.",
    "STRUCT006": "The heads of the head groups do not add up to the model's, or a group has none.",
    "STRUCT007": "Replicas do not divide the batch, or micro-batches the batch of a replica.",
    "STRUCT008": "A micro-batch cannot be split as the plan says: a part would be uneven or empty.",
    "STRUCT009": "The ways of the dense FFN do not divide the GPUs of the stage, or exceed its columns.",
    "STRUCT010": "An expert has no GPU, is placed twice in one group, or in a group that does not exist.",
    "STRUCT011": "Tensor ways of the experts do not divide the GPUs that hold experts, or exceed an expert's columns.",
    "STRUCT012": "The attention grid cannot hold the model: too many segments, groups or context parts.",
    "STRUCT013": "The GPUs of a stage are of different kinds.",
    "STRUCT014": "Experts with GPUs of their own need one stage, GPUs on both sides, and waves that divide the micro-batches.",
    "STRUCT015": "The token splits of attention and FFN in a stage do not nest: neither divides the other.",
    "STRUCT016": "The model has experts and the stage does not say where they are, or the other way round.",
    "STRUCT017": "Two operators of a graph have one id.",
    "STRUCT018": "An operator belongs to a stage, a layer or a micro-batch that the plan does not have there.",
    "STRUCT019": "An operator runs on a GPU or a stream that is not its own, or a hand-over joins the wrong GPUs.",
    "STRUCT020": "The groups of a collective do not share out the GPUs of its stage in their order.",
    "STRUCT021": "A GPU that holds what an operator reads does not run it, or runs it twice.",
    "STRUCT022": "A micro-batch, a layer or a part of a layer is missing from the graph.",
    "STRUCT023": "Tokens, rows of scores or the groups of a collective are split otherwise than the plan declares.",
    "STRUCT024": "GPUs that serve one another's tokens are no whole groups of a stage that dispatches, or all of it.",
    "SHAPE001": "An operator reads a tensor of another shape than its producer wrote.",
    "SHAPE002": "A weight's shape is not the k x n of the product that reads it.",
    "SHAPE003": "An operator writes another shape than its own sizes give.",
    "SHAPE004": "A sum adds tensors of different shapes.",
    "SHAPE005": "What a collective gathers is not what its members hold.",
    "SHAPE006": "What an operator reads does not come by one edge from its writer, or an edge brings what nobody reads.",
    "SHAPE007": "An edge says other bytes than its tensor has.",
    "SHAPE008": "An operator reads a tensor of another layer or micro-batch, or one that has been replaced since.",
    "SHAPE009": "Nobody reads what an operator writes.",
    "SHAPE010": "An operator is priced by other sizes, bytes or dtypes than those of its tensors.",
    "SHAPE011": "A collective cannot make what it leaves of what its members bring.",
    "SHAPE012": "An exchange with the experts is priced by other destinations than the plan's experts and their loads give.",
    "CYCLE001": "Operators wait for each other in a circle: the plan deadlocks.",
    "CYCLE002": "An edge leads to an operator that does not exist.",
    "CYCLE003": "Two operators of one stream are not ordered: they may run in either order, or at once.",
    "CYCLE004": "An operator waits for another without need: they share no stream, no tensor and no buffer.",
    "CYCLE005": "A tensor may be written over before its readers have read it.",
    "CYCLE006": "A role does not end with one barrier over its GPUs.",
    "CYCLE007": "Operators of a GPU are not in the order of the plan's schedule.",
    "CYCLE008": "GPUs run the operators of a role in different orders, so that collectives may miss each other.",
    "WORK001": "The plan does not compute the model: some of its work or weights is on no GPU.",
    "WORK002": "Work or weights are repeated on more GPUs than the plan's partition declares.",
    "WORK003": "Work is repeated on several GPUs, as the plan's partition declares.",
    "WORK004": "The replicas of an expert do not share its tokens evenly, as the plan declares and the price assumes.",
    "WORK005": "A GPU holds another part of a weight, or computes other heads, than the plan gives it.",
    "MEM001": "The fullest GPU of a stage needs more memory than it has.",
    "NUM001": "The plan does not compute what the unsplit model computes.",
    "NUM002": "The numeric run agrees with the unsplit model.",
    "NUM003": "An operator cannot run: what it reads is on another GPU, not yet there, overwritten, or of another shape.",
    "NUM004": "Tokens are lost: a layer or a micro-batch is not computed for all of them.",
    "NUM005": "The numeric run was not made, with the reason.",
    "NUM006": "The unsplit reference and Hugging Face's code for the model disagree, so that a run proves nothing.",
    "CLAIM001": "A claim is wrong: the work or time it states is not what the plan needs.",
    "CLAIM002": "A claim cannot be derived: it rests on something that is not stated.",
    "CLAIM003": "A claim holds.",
    "DAG001": "A node of a DOT file has no arrow: nothing leads to it or from it.",
    "DAG002": "A DOT file draws an arrow to or from a node that it does not declare.",
    "DAG003": "No path leads from an input of a DOT file to this node.",
    "DAG004": "A node of a DOT file names other GPUs than the frame around it.",
    "DAG005": "The ends of an arrow hold the same number of elements in different shapes.",
    "DAG006": "A place of a DOT file is read as Graphviz reads it, which may not be what was meant.",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check found. `where` names the field or operator, `fix` says what would help."""

    code: str
    severity: Severity
    where: str
    message: str
    measured: str | float | int | None = None
    expected: str | float | int | None = None
    fix: str = ""

    def __post_init__(self) -> None:
        if self.code not in CATALOG:
            raise ValueError(f"finding code {self.code} is not in the catalog")

    def to_dict(self) -> dict[str, str | float | int | None]:
        """As JSON-ready data."""
        return asdict(self)


def errors(findings: tuple[Finding, ...] | list[Finding]) -> list[Finding]:
    """The findings that make a plan invalid."""
    return [finding for finding in findings if finding.severity == "error"]
