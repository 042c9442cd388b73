"""Eigensolvers that know nothing about networks: each asks for matrix-vector products and is told the results."""
