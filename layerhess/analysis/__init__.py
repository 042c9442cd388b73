"""One analysis under way, from its arguments to its result, and the calls on single operators."""
