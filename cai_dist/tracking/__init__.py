"""Paths of a run, manifest, metrics, checkpoints, console, signals."""
