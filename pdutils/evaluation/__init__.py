"""Many images x attacks x defences: records, and rates with intervals made of them.

Begin with `evaluate.evaluate`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "datasets": ["CollectionSource"],
        "registry": ["attack_texts", "defense_texts", "parse_attack", "parse_defense"],
        "scores": ["Cells", "named"],
        "report": ["Report"],
        "store": ["Store", "StoreError"],
        "cost": ["estimate"],
    },
)
