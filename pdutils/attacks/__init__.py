"""Attacks on a classifier: what makes an adversary of an image.

All take images and labels and give adversaries on the 8-bit grid. Begin with `gradient.igsm`;
`art_classifier` hands a network to the attacks of the Adversarial Robustness Toolbox.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "gradient": ["fgsm", "igsm", "igsm_path", "pgd"],
        "minimum_norm": ["carlini_wagner", "deepfool", "fgsm_smallest", "jsma", "lbfgs", "rescale"],
        "adaptive": ["bpda", "expected_gradient"],
        "_art": ["art_classifier"],
    },
)
