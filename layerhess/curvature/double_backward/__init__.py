"""Functions of torch written in another form, in which their second derivative is cheaper, or right at all."""
