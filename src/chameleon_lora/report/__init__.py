"""Pages about measurements: plots, tables, and the report of runs on real servers."""
