"""How stages start workers, sample, train and score."""
