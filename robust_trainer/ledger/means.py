"""Running means of what is logged, kept on the device until it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class RunningMeans:
    """Named means over the steps since they were last taken."""

    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, value: Tensor, count: Tensor | int) -> None:
        """Adds a sum and the number of its terms, without a host sync.

        Args:
            name: of the mean.
            value: the sum, scalar.
            count: the number of terms in it.
        """
        total = count.float() if isinstance(count, Tensor) else torch.full_like(value, float(count))
        pair = torch.stack([value.float(), total])
        self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def take(self, over_processes: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Returns the means since the last call, over all processes (one host sync).

        Args:
            over_processes: sums a tensor over the processes.
        """
        names = list(self.sums)
        if not names:
            return {}
        pairs = over_processes(torch.stack([self.sums[name] for name in names])).cpu()
        self.sums.clear()
        return {name: float(value / count) for name, (value, count) in zip(names, pairs) if count > 0}
