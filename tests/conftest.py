"""What every test shares: two threads, so that rounding differs less between machines."""

import torch

torch.set_num_threads(1)
