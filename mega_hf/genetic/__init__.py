"""Pure search: tensors, floats and seeds in, tensors and floats out."""
