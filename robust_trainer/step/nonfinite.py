"""NaN and infinity: a sample that has them gets weight 0, a step whose gradient has them is skipped; both are counted and said."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..ledger.ledger import SampleLedger
from ..types import ForwardOutput


def finite_samples(outputs: Sequence[ForwardOutput]) -> Tensor:
    """Returns which samples have finite outputs in all forwards, and finite targets, bool (M, B). Without a host sync.

    Args:
        outputs: of one micro-batch.
    """
    finite = torch.stack([output.logits.isfinite().all(-1) for output in outputs]).all(0)
    if outputs[0].gradient_norms is not None:
        finite = finite & outputs[0].gradient_norms.isfinite()
    targets = outputs[0].targets
    return finite & targets.isfinite().all(-1) if targets.is_floating_point() else finite


def without(outputs: Sequence[ForwardOutput], used: Tensor) -> list[ForwardOutput]:
    """Returns the outputs with zeros in place of samples that are not used: 0 * NaN in a backward pass would be NaN.

    Args:
        outputs: of one micro-batch.
        used: bool (M, B).
    """
    rows = used.unsqueeze(-1)
    return [replace(output, logits=torch.where(rows, output.logits, torch.zeros_like(output.logits))) for output in outputs]


@dataclass
class NonfiniteGuard:
    """Counts samples and steps that were left out for NaN or infinity, on the device; the host looks when the run logs.

    Attributes:
        counts: samples, micro-batches of two samples or more of which none was finite, and skipped steps, float (3,).
        told: whether the run has said so.
    """

    counts: Tensor | None = None
    told: bool = False
    _first: bool = True

    def take(self, finite: Tensor) -> None:
        """Counts a micro-batch.

        Args:
            finite: of `finite_samples`.

        Raises:
            ValueError: where no sample of the training's first batch is finite.
        """
        bad = ~finite.all(0)
        several = len(bad) > 1
        if self._first:
            self._first = False
            if several and bool(bad.all()):
                raise ValueError(
                    f"the model's outputs are NaN or infinite for all {len(bad)} samples of the first batch: look at its weights "
                    "(a damaged file, an overflow in half precision), at the inputs' scale and at the targets."
                )
        whole = bad.all() if several else torch.zeros_like(bad[0])
        self._add(torch.stack([bad.sum(), whole, torch.zeros_like(whole)]))

    @torch.no_grad()
    def skip(self, parameters: Iterable[nn.Parameter], norm: Any, optimizer: Any) -> None:
        """Has the optimizer leave the weights alone where the gradient is NaN or infinite. Without a host sync.

        Args:
            parameters: of the model, with their gradients; gone through once, where they are needed.
            norm: of all gradients, before they were clipped.
            optimizer: the Trainer's. One that is fused, as the Trainer's default is, skips the step on the device; for others the
                gradients become zero.
        """
        if not isinstance(norm, Tensor) or norm.dim():
            return
        bad = ~norm.isfinite()
        self._add(torch.stack([torch.zeros_like(bad), torch.zeros_like(bad), bad]))
        bare = getattr(optimizer, "optimizer", optimizer)
        fused = isinstance(bare, torch.optim.Adam | torch.optim.SGD) and all(group.get("fused") for group in bare.param_groups)
        if fused:
            bare.found_inf = bad.float()  # as torch's gradient scaler says it
            hook: Any = bare.register_step_post_hook(lambda *_: _forget(bare, hook))
        elif bad.device.type == "cpu":
            if bool(bad):
                for parameter in parameters:
                    parameter.grad = None
        else:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.masked_fill_(bad.to(parameter.grad.device), 0.0)

    def report(
        self, total: Callable[[Tensor], Tensor], processes: int, ledger: SampleLedger | None
    ) -> tuple[dict[str, float], str]:
        """Returns what was left out since the last call, for the log, and the warning that says so, once (one host sync).

        Args:
            total: sums a tensor over the processes.
            processes: how many train together.
            ledger: names the rows; None for a stream.

        Raises:
            ValueError: where no sample of a whole batch was finite: the run learns nothing any more.
        """
        if self.counts is None:
            return {}, ""
        samples, whole, skipped = total(self.counts).tolist()
        skipped /= processes
        self.counts.zero_()
        if not samples and not skipped:
            return {}, ""
        rows = [] if ledger is None else ledger.nonfinite.nonzero().flatten()[:8].tolist()
        named = f" (training rows {rows})" if rows else ""
        if whole:
            raise ValueError(
                f"the outputs of all samples of a batch were NaN or infinite, {int(whole)} times since the last log{named}: the "
                "run learns nothing any more; lower learning_rate, look at the rows, and start from the last checkpoint."
            )
        told, self.told = self.told, True
        logs = {"nonfinite": samples} if samples else {}
        logs |= {"skipped_steps": skipped} if skipped else {}
        parts = [f"{int(samples)} samples had NaN or infinite outputs{named} and weight 0"] if samples else []
        parts += [f"{int(skipped)} steps had a NaN or infinite gradient and were skipped"] if skipped else []
        return logs, "" if told else f"since the last log {', and '.join(parts)}: look at the rows, or lower learning_rate."

    def _add(self, counts: Tensor) -> None:
        self.counts = counts.float() if self.counts is None else self.counts + counts


def _forget(optimizer: Any, hook: Any) -> None:
    """After its step, the optimizer is told nothing any more."""
    del optimizer.found_inf
    hook.remove()
