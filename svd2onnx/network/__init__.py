"""The network as PyTorch has it: its layers, and compressed ones in their place."""
