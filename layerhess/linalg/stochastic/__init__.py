"""Estimators of trace, diagonal, spectral density and coupling of a matrix, from its products with random vectors."""
