"""The numeric run: a plan's own operator graph, executed on small tensors with one store per virtual GPU."""

from planner.check.run.report import NOT_RUN as NOT_RUN
from planner.check.run.report import NumericRun as NumericRun
from planner.check.run.report import run_choice as run_choice
