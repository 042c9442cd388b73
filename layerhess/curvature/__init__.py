"""Products with curvature matrices (Hessian, Gauss-Newton, Fisher): for one batch, and summed over all the data."""
