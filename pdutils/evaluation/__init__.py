"""Many images x attacks x defences: records, and rates with intervals made of them.

Begin with `run`. What an evaluation begins with and is held against is offered here too.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "study": [
            "Study",
            "estimate",
            "load_classifier",
            "load_collection",
            "load_records",
            "run",
        ],
        "datasets": ["DrawingSource", "folder_source", "listed_source"],
        "report": ["AGGREGATES"],
        "store": ["StoreError"],
    },
)
