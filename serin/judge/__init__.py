"""Decides, from windows of counters, whether a candidate advances, waits, or is rolled back.

    state = start(policy)
    state = observe(state, window)      # every window once
    decision = decide(state, now)       # as often as you like
    confidence(state)                   # by metric, the interval of candidate / stable

Pure functions of values. `state.dump()` is a small JSON document, `load` its inverse.
"""

from serin.judge.confidence import Interval, confidence
from serin.judge.decision import Action, Decision, Evidence
from serin.judge.judge import observe, start
from serin.judge.policy import (
    EventMetric,
    JudgeSpec,
    LatencyMetric,
    Policy,
    ScoreMetric,
    Scores,
    StagePolicy,
    metric_name,
    policy_for,
)
from serin.judge.ruling import decide
from serin.judge.state import State, load
from serin.judge.window import ArmCounts, Window

__all__ = [
    "Action",
    "ArmCounts",
    "Decision",
    "EventMetric",
    "Evidence",
    "Interval",
    "JudgeSpec",
    "LatencyMetric",
    "Policy",
    "ScoreMetric",
    "Scores",
    "StagePolicy",
    "State",
    "Window",
    "confidence",
    "decide",
    "load",
    "metric_name",
    "observe",
    "policy_for",
    "start",
]
