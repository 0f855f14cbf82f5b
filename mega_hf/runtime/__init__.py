"""Processes, files, locks, progress, logging, random streams, and the Hub client."""
