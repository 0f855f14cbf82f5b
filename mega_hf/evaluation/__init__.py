"""Weights to a number: the forward pass, right answers counted, individuals shared out over processes."""
