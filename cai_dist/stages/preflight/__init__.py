"""What would fail hours from now, tried at once."""
