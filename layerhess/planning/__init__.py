"""From curvature to a decision: which layer gets how many bits, or how much pruning."""
