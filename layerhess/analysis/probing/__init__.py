"""Estimates by random probing for many blocks at once: the same products serve traces, diagonals and couplings."""
