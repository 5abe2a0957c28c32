"""The pipeline of a run, one file a stage."""
