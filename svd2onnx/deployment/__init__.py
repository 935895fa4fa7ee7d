"""From a finished file to where it is served: folders, model cards, NVIDIA Triton, generated text."""
