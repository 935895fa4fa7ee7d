"""The mathematics of one layer: rounding, low rank, and both; tensors in, codes out."""
