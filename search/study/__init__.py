"""The study: the loop of asking and telling, the archive, the final choice."""
