"""Train parents from seeds."""
