"""Weight space: state dicts as points of one flat float32 vector."""
