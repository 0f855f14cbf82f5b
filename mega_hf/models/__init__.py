"""Parents: references, loading, compatibility, saving, and the CIFAR ResNets."""
