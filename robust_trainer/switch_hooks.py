"""The Trainer's hooks for what any training takes, with a method or without: the head alone, capped spectral norms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn

from .callbacks.spectral_cap import SpectralCap
from .config import RobustConfig
from .models.heads import LinearProbe
from .models.spectral import Cap
from .peer_hooks import PeerHooks


class SwitchHooks(PeerHooks):
    """A Trainer that trains the head alone, and caps the spectral norm of weights, where it is told to."""

    _alone: LinearProbe | None = None

    def _switches(self) -> tuple[bool, Cap | None]:
        """Whether the head is trained alone, and the cap: of the method in force, else of the arguments."""
        recipe, args = self.recipe(), self.args
        freeze_backbone, cap = args.switches() if isinstance(args, RobustConfig) else (False, None)
        if recipe is None:
            return freeze_backbone, cap
        if cap is not None and recipe.spectral is not None and recipe.spectral != cap:
            raise ValueError(f"spectral_cap={cap.k!r} in the arguments and {recipe.spectral.k!r} in the recipe: give one of them.")
        return recipe.freeze_backbone or freeze_backbone, recipe.spectral or cap

    @contextmanager
    def _switched(self) -> Iterator[None]:
        """One training: what is frozen and capped in it is as it was afterwards, but for the weights."""
        freeze_backbone, cap = self._switches()
        bare = self.accelerator.unwrap_model(self.model)
        callback = SpectralCap(cap.k, cap.layers) if cap is not None else None
        with LinearProbe(bare) if freeze_backbone else nullcontext() as self._alone:
            if callback is not None:
                self.add_callback(callback)
            try:
                yield
            finally:
                self._alone = None
                if callback is not None:
                    self.remove_callback(callback)

    def _in_training_mode(self, model: nn.Module) -> nn.Module:
        """The model in the mode that it is trained in."""
        model.train()
        if self._alone is not None:
            self._alone.hold()
        return model

    def compute_loss_context_manager(self) -> Any:
        if self._alone is not None:  # training_step has just called model.train()
            self._alone.hold()
        return super().compute_loss_context_manager()
