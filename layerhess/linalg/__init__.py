"""Vectors and matrices, and nothing about networks: eigensolvers, estimators, bounds."""
