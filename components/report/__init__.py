"""The reports of a run and of an evaluation: self-contained HTML."""

from components.report.page import evaluation_html, run_html

__all__ = ["evaluation_html", "run_html"]
