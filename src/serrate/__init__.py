"""Serrate: sequence recommenders without padding.

`serrate.Recommender`, `serrate.JaggedTensor` and `serrate.EventBatch` load what they need at the first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import SerrateError as SerrateError
    from .jagged import EventBatch as EventBatch
    from .jagged import JaggedTensor as JaggedTensor
    from .recommender import Recommender as Recommender

__version__ = "0.1.0"

# By name and not by import: `import serrate` stays cheap, and the floors keep their arrows.
_EXPORTS = {"Recommender": ".recommender", "JaggedTensor": ".jagged", "EventBatch": ".jagged",
            "SerrateError": ".errors"}


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
