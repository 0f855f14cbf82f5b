"""State dicts as vectors: layout, encodings, alignment, BatchNorm."""
