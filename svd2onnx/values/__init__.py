"""The values that travel between the wings: what is asked for, layers, forms, plans; and the errors."""
