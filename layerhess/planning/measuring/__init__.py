"""Forward passes with changed weights: what they do to the loss, and what that says of other plans."""
