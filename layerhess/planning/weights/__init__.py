"""What options do to weights, and a plan applied to a model."""
