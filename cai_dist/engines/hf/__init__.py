"""Rollouts on transformers: continuous batching, labels, the probe."""
