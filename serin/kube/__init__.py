"""Kubernetes as the controller needs it: API client, informer, due times, leader."""
