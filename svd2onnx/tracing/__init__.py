"""A network is traced once, by ``torch.export``: what follows works on the graph of its operators."""
