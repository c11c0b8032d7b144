"""Quantizers of single weights, on histograms of moments."""
