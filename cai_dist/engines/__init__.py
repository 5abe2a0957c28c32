"""Machinery of one process that trains, samples or scores."""
