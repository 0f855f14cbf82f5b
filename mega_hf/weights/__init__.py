"""State dicts as vectors: layout, encodings, alignment, BatchNorm statistics.

Pure functions of tensors; imports no other folder but `errors`. `space` lays a state dict out as a
flat vector, `encoding` says what a genome means, `symmetry` and `matching` align channels (with
the rules of `operations` on the `axes` of tensors), and `mapped` keeps weights on the disk.
"""
