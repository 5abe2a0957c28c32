"""What workers ask of a training engine and of a rollout engine."""
