"""One option for every layer, within limits: on NumPy tables, nothing about networks."""
