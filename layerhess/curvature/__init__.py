"""How one batch contributes to a product with the curvature operator."""
