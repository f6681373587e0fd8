"""Reports: a run folder → one HTML file that opens from disk, and comparisons of runs.

``record`` reads the run folder, ``neighbours`` and ``embedding_map`` compute what no file holds,
``charts`` and ``thumbnails`` draw, ``run_page`` and ``comparison_page`` put it together. Nothing
here needs torch, and nothing in a page comes from elsewhere.
"""

from training.report.comparison_page import write_comparison
from training.report.record import ReportError
from training.report.run_page import write_report

__all__ = ["ReportError", "write_comparison", "write_report"]
