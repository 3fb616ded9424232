"""Data sets, embedded data and input pipelines."""
