"""What a machine or a cluster lacks for a run, and what to do about it."""
