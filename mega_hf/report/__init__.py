"""The record of a run, result.json, and what is made of it: table, plots, card."""
