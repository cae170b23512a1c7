"""A pretrained model: its checkpoint files, and its structure of blocks, branches and linear layers."""
