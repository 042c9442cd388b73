"""The report's page: three answers, one table that is the picture, two charts, and what lies folded away."""
