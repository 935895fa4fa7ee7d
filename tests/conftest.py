"""What every test shares: one thread, because small steps on busy cores are slower with more; no terminal.

pytest-xdist tells its workers the width of the terminal that it writes to, where svd2onnx has none.
"""

import os

import torch

torch.set_num_threads(1)
os.environ.pop("COLUMNS", None)
