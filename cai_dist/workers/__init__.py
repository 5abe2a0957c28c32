"""One role in one process each, and the registry that finds their classes."""
