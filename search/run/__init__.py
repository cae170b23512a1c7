"""One run: its configuration, and the objects that this names."""
