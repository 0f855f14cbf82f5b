"""Files of strangers: each is read, or refused by an error of ours, in bounded time and memory."""
