"""The results of a run: a table for the terminal, a page for the browser. Reads run folders and nothing else."""

from flowstill.reports.columns import register_column
from flowstill.reports.page import write_report
from flowstill.reports.results import Result, results
from flowstill.reports.table import results_tables, table_text

__all__ = ["Result", "register_column", "results", "results_tables", "table_text", "write_report"]
