"""What the last stage measures; the only room that may see the oracle."""
