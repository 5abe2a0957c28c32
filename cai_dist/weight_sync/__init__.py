"""Weight transfer: the two sides of each way from training to rollout."""
