"""The settings of a run: strict, frozen sections."""
