"""Text: where it comes from, its tokens, and the sequences made of them."""
