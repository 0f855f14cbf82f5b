"""The search itself: tensors, floats and seeds in, tensors and floats out."""
