"""What to do: the recipe's schema, YAML with line numbers, and the tree of merges."""
