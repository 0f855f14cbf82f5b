"""The recipe: its schema, YAML with line numbers, errors, and the tree of merges.

`schema.Recipe` is the whole recipe, and each of its blocks has a file. `reference` generates
docs/recipe.md from them.
"""
