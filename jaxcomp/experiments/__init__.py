"""What every experiment shares: its directory, its samples, its verdicts, its report.

An experiment (`sweep`, `regularization`, the study of `linear_regression`) is settings, work that
is stored part by part, a table, claims and pictures. Here is what does not depend on which.
"""
