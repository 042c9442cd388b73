"""Products from factors: the inputs and output sensitivities of every layer, without the network itself."""
