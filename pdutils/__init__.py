"""Pixel deflection and its evaluation: the functions behind the notebooks.

The top floor reads like the paper. In this order:

- `images`: pictures: load, save, folders of them
- `classifiers`: a Keras model with its preprocessing, class names and input size
- `deflection`: pixels replaced by neighbours of theirs
- `activation`: where a network looks: class activation maps, robust ones
- `denoising`: wavelet shrinkage, and other denoisers
- `metrics`, `stats`, `published`, `plots`, `tables`: how results are measured and shown

Around it are rooms, each of which stands on those before it: `defenses`, `attacks`, `demo`,
`evaluation`, `explorer`, `cli`. No file of the top floor imports one of them.

An image is a float32 array (H, W, 3), RGB, of values in [0, 255]; a batch is (N, H, W, 3); a map is
float32, (H, W) or (N, H, W), in [0, 1]. A function takes one or a batch, gives the same rank back,
and changes nothing in place. Whatever draws takes `rng`: a seed, a NumPy generator or None; the
same seed gives the same bits, and each image has a stream of its own.

What comes in is checked once, at the door of each function that is offered. What is no image, out
of range, of another type or an unknown word raises ValueError, and says what was expected and what
came; a missing file raises FileNotFoundError. Docstrings name other errors only.
"""

import os

import lazy_loader

# TensorFlow's start-up chatter would stand above the first figure of every notebook. It reads
# this when it loads; errors still arrive as Python exceptions.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["attacks", "defenses", "demo", "evaluation", "explorer"],
    submod_attrs={
        "images": ["labelled_files", "load_image", "load_map", "save_image", "save_map"],
        "classifiers": [
            "Classifier",
            "classifier_from_file",
            "load_classifier",
            "read_class_names",
        ],
        "deflection": ["pixel_deflection"],
        "activation": ["cam", "grad_cam", "robust_cam"],
        "denoising": ["denoise"],
        "defenses": ["Defense"],
    },
)
