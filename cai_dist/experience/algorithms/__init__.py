"""One file an algorithm: from scores and penalties of whole groups to an advantage for every token."""
