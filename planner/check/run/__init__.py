"""The numeric run: a plan's own operator graph, executed on small tensors with one store per virtual GPU."""

from planner.check.run.numeric import run_choice as run_choice
from planner.check.run.training import run_training as run_training
from planner.check.run.verdict import NOT_RUN as NOT_RUN
from planner.check.run.verdict import NumericRun as NumericRun
