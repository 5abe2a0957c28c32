"""What a run will take, worked out from its run file: nothing is started."""
