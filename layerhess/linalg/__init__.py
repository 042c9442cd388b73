"""Linear algebra that knows nothing about networks: eigensolvers, estimators, error bounds."""
