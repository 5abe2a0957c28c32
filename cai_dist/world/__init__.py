"""The micro-world: its text, the shape of its model, its oracle."""
