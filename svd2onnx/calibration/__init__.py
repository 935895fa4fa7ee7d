"""What layers see on real data, what their outputs are worth, and how far two networks are apart."""
