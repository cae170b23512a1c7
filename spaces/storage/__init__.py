"""Storage on disk: atomic writes, the ownership of files, and the level database."""
