"""The story of one compression, act by act; ``compress_export`` tells it from the top to the bottom."""
