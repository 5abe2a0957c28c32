"""The parts of the method for a notebook: models in this process, no Ray. `import cai_dist` offers them by name."""
