"""Runs an analysis, from its arguments to its result; also the functions for single operators (eigsh, trace, ...)."""
