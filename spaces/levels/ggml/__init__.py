"""The storage types of llama.cpp: their sizes, quantization, decoding, and how they serve as levels."""
