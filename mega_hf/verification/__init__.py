"""Rebuild a run from its journal and compare it with what it claims."""
