"""The commands of `cai-dist`."""
