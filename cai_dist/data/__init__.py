"""Prompts and comparisons from files, the chat format, tables, flat batches."""
