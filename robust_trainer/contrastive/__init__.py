"""SimCLR pre-training of an image classifier's backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .model import ContrastiveModel
    from .trainer import ContrastiveConfig, ContrastiveTrainer
    from .views import VIEWS, SimCLRViews, make_views

__all__ = [
    "ContrastiveConfig",
    "ContrastiveModel",
    "ContrastiveTrainer",
    "SimCLRViews",
    "VIEWS",
    "make_views",
]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ContrastiveConfig": "trainer",
        "ContrastiveModel": "model",
        "ContrastiveTrainer": "trainer",
        "SimCLRViews": "views",
        "VIEWS": "views",
        "make_views": "views",
    },
)
