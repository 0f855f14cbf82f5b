"""The command line: one file per command, its parser and its function side by side."""
