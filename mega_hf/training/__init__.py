"""Train parents: what decides a training, the training loop, and resuming."""
