"""Functions in a form that is cheap, or right, to differentiate twice."""
