"""Questions to the feedback model, and the labels that its answers are."""
