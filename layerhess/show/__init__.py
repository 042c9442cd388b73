"""Displays of results: tables, frames, figures, notebooks and the report. They read an Analysis and change nothing."""
