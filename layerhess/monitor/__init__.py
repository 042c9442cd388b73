"""Curvature while a model trains: largest eigenvalues, followed from point to point, at a cost that was agreed."""
