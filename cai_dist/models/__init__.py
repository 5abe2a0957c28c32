"""Models: loading, layouts, heads, adapters, probes, exports."""
