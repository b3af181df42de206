"""Run folders: a recipe, its metrics, its networks the state to resume from. Reports read nothing else."""

from flowstill.runs.folder import Run, is_run
from flowstill.runs.metrics import Measurement, MetricsLog
from flowstill.runs.writer import RunWriter

__all__ = ["Measurement", "MetricsLog", "Run", "RunWriter", "is_run"]
