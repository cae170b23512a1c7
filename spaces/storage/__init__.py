"""Files: atomic writes, ownership, and the level database."""
