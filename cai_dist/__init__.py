"""Constitutional AI, distributed: see README.md and docs/architecture.md."""
