"""A progress bar that also tells what an attack does while it runs for long."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from .base import Attack, Forward

#: Seconds between two looks into a running attack.
TELL_EVERY = 0.5


class Progress:
    """One bar over ``total`` visits, a sample under one attack each, those included that an attack need not visit any more.

    Its text: the attack, the share of the samples finished that no attack broke, and of the running attack the images still in it
    and its forward passes, out of how many at most where the attack has ``forwards``.
    """

    def __init__(self, total: int, shown: bool = True):
        self.bar: Any = tqdm(
            total=total, desc="attacking", unit="visit", dynamic_ncols=True, smoothing=0, disable=not shown
        )  # no smoothing: the attacks' speeds differ too much
        self._robust = ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.close()

    def visited(self, count: int) -> None:
        """So many visits more are done."""
        self.bar.update(count)

    def robust(self, share: float) -> None:
        """The share in [0, 1] of the finished samples that are right under every attack."""
        self._robust = f"robust {100 * share:.1f} %"
        self.bar.set_postfix_str(self._robust)

    def watched(self, forward: Forward, attack: Attack, name: str) -> Forward:
        """``forward``, which tells the bar of its calls twice a second."""
        self.bar.set_description(name)
        most = getattr(attack, "forwards", None)
        calls, shown_at = 0, time.monotonic()

        def watching(images: Tensor) -> Tensor:
            nonlocal calls, shown_at
            calls += 1
            now = time.monotonic()
            if now - shown_at >= TELL_EVERY:
                shown_at = now
                doing = f"{len(images)} images in forward {calls}" + (f" of at most {most}" if most else "")
                self.bar.set_postfix_str(", ".join(part for part in (self._robust, doing) if part))
            return forward(images)

        return watching if not self.bar.disable else forward
