"""Rollouts on vLLM, the one place that imports it."""
