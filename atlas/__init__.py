"""Models that nobody here wrote, with the weights their packages ship: the truths, the tests, and docs/atlas.md."""
