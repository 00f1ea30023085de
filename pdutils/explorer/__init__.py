"""The defence under sliders: plain ones for the notebooks; the explorer as widget and as page.

Begin with `sliders` for one picture that follows its knobs, `widget.explorer` for all of them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "sliders": [],
        "engine": ["Explorer", "Settings", "as_code"],
        "widget": ["ExplorerWidget", "explorer"],
        "page": ["serve"],
    },
)
