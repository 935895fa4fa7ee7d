"""Where and how work is done: executors, devices, memory, files that appear whole or not at all."""
