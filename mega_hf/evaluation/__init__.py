"""From weights to a number: forward pass, racing, calibration, statistics."""
