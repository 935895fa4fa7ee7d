"""What every test shares: one thread, because small steps on busy cores are slower with more."""

import torch

torch.set_num_threads(1)
