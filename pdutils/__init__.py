"""Pixel deflection and its evaluation: the functions behind the notebooks."""

import os

# TensorFlow's start-up chatter would stand above the first figure of every notebook. It reads
# this when it loads; errors still arrive as Python exceptions.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
