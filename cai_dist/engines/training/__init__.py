"""Training on DeepSpeed, and scoring without an optimizer."""
