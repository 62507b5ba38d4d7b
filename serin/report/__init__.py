"""The report of a rollout."""
