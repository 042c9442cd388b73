"""Fast products from factors, each layer's inputs and output sensitivities, without running the network again."""
