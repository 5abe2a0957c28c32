"""One file an algorithm: from scores and penalties of a whole batch to an advantage for every token."""
