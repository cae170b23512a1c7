"""The model: its files, and the structure of blocks, branches and linear layers."""
