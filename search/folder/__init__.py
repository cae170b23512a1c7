"""The folder with the files of a run, and the lock on that folder."""
