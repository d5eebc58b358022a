"""Runs what the documents show: their commands, their Python, their settings."""
