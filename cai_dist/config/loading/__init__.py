"""Run files: YAML with `extends`, overrides, one line a mistake."""
