"""Quantizations as jobs of an executor: what a worker does, and what it returns."""
