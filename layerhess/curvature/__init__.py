"""What is multiplied by: one batch's share of a matrix, passes over the data that add the shares up, the operators."""
