"""Pytrees by path: which leaves there are, what they are for, which are one array."""
