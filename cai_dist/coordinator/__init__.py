"""The loop of PPO, against protocols of its roles."""
