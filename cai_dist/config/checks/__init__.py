"""Refusals and warnings about settings, before any work is done."""
