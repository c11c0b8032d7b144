"""Arithmetic that knows nothing of models: sums, scales, precision, checks, transformations."""
