"""Which weight gets how many bits or how much pruning: what options do, and how a plan is applied and handed on."""
