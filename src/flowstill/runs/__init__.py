"""Run folders: the recipe, its metrics, its networks and the state to resume from. Reports read nothing else."""

from flowstill.runs.folder import Run, folder_of, is_run
from flowstill.runs.metrics import Measurement, MetricsLog
from flowstill.runs.summary import JobSummary, Scores, Summary
from flowstill.runs.writer import RunWriter

__all__ = ["JobSummary", "Measurement", "MetricsLog", "Run", "RunWriter", "Scores", "Summary", "folder_of", "is_run"]
