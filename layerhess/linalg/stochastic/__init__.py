"""Estimators of trace, diagonal, density and coupling from random vectors; like the solvers, they ask and are told."""
