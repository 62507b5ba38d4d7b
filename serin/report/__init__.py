"""The report of a rollout."""

from serin.report.page import rollout_html

__all__ = ["rollout_html"]
