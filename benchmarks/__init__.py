"""Benchmarks: the time until every layer's top Hessian eigenvalue is right, ours beside four peers (see README.md)."""
