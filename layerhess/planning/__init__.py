"""From curvature to decisions: how many bits, or which sparsity, each weight gets, and what that was held against."""
