"""Plain records of what was found, and their form on disk."""
