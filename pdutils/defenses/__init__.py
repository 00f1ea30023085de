"""Defences: pixel deflection and denoising as a pipeline, as one Keras model, and their peers.

Begin with `pipeline.Defense`, the defence of the paper; `defended_model` puts it into a Keras
model, `PixelDeflectionPreprocessor` and `WaveletDenoisingPreprocessor` before an estimator of ART.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "pipeline": ["Defense", "OwnDefense"],
        "quilting": [],
        "transformations": [],
        "layers": [
            "PixelDeflection",
            "RobustCAM",
            "RobustGradCAM",
            "WaveletDenoising",
            "defended_model",
        ],
        "art": [
            "ChainedPreprocessor",
            "PixelDeflectionPreprocessor",
            "WaveletDenoisingPreprocessor",
        ],
    },
)
