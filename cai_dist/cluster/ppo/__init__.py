"""The groups of workers that PPO's roles are, and what goes between them."""
