"""What is asked of a model and on which rows: data sets, splits, tasks."""
