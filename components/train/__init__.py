"""The step that trains one learner."""
