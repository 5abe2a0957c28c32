"""Both sides of each way that weights go from training to rollout."""
