"""What the notebooks work on: an image with its adversary, many images, the shipped drawings.

Begin with `examples.load_case`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "drawing": ["CLASS_NAMES", "draw_animal", "draw_animals"],
        "examples": [
            "Case", "Collection", "DemoImage", "demo_images", "demo_network", "demo_root",
            "demo_weights", "image_names", "load_case", "load_clean", "load_collection",
        ],
    },
)  # fmt: skip
