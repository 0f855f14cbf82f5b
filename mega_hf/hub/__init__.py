"""Push runs to the Hub and pull them back."""
