"""Classifying more images than fit into memory, and going on where a run was stopped."""
