"""Export of a model as a GGUF file, which llama.cpp runs."""
