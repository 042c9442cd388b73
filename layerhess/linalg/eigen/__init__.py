"""Eigensolvers that know vectors and nothing about networks: each asks for products and is told them."""
