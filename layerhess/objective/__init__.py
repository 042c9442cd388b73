"""Model, data and loss as one function, whose value is a sum and a count."""
