"""Tasks and their data: data sets, splits, rows, and one file per task."""
