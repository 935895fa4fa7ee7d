"""Which form each layer gets: candidates, their bytes and predicted errors, knapsacks, goals."""
