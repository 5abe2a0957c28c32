"""Parquet tables between stages, transcripts, figures with intervals."""
