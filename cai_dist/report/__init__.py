"""The HTML report of a run."""

from cai_dist.report.page import write_report

__all__ = ["write_report"]
