"""What is learned from comparisons, and how well."""
