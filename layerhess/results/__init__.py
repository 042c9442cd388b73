"""The results of an analysis as plain records, and their form on disk."""
