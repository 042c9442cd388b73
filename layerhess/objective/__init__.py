"""Combines model, data and loss into one function of the parameters, with a sum of losses and a count as its value."""
