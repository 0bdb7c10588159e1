"""A second look at texts without the tokens that are tied to one label, for those rows alone that have them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..data.batch_rows import rows_of
from ..evidence.tied_tokens import TiedTokens
from ..models.sharding import is_sharded
from .agreement import for_each
from .input_reader import TOKENS
from .records import MicroBatch, Run


@dataclass(frozen=True)
class Removal:
    """What is taken out of which rows.

    Attributes:
        tokens: of each group G the tokens, as `InputReader` numbers them, bool (G, TOKENS).
        rows: of each group the rows, bool (G, N).
    """

    tokens: Tensor
    rows: Tensor

    @classmethod
    def of(cls, groups: list[TiedTokens], device: torch.device) -> Removal:
        """Returns what the groups say, on a device."""
        tokens, rows = (torch.stack([torch.from_numpy(getattr(g, name)) for g in groups]) for name in ("tokens", "rows"))
        return cls(tokens.to(device), rows.to(device))

    def without(self, inputs: Mapping[str, Any], positions: Tensor, padding: int | None) -> dict[str, Any] | None:
        """Returns the inputs of those rows of a batch that have the tokens, without these; None where nothing can be taken out.

        What is taken out stands behind the other tokens (before them where texts are padded there) and is masked.

        Args:
            inputs: of a batch, with input_ids and attention_mask (B, T).
            positions: of its rows in the data set (B,).
            padding: the number of the padding token, None for none.
        """
        rows = self.rows[:, positions].any(0)
        kept = rows_of(inputs, rows, len(positions))
        ids, mask = kept["input_ids"], kept.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.shape != ids.shape or ids.dim() != 2 or not len(ids):
            return None
        gone = (self.rows[:, positions[rows]].T.float() @ self.tokens.float()) > 0
        stays = mask.bool() & ~gone.gather(1, ids % TOKENS)
        left = bool((mask[:, 0] == 0).any())
        order = (stays if left else ~stays).to(torch.int8).argsort(stable=True, dim=1)
        moved = {name: _in_order(value, order, ids.shape) for name, value in kept.items()}
        moved["attention_mask"] = stays.gather(1, order).to(mask.dtype)
        if padding is not None:
            moved["input_ids"] = moved["input_ids"].masked_fill(moved["attention_mask"] == 0, padding)
        return moved


def _in_order(value: Any, order: Tensor, shape: Any) -> Any:
    return value.gather(1, order) if isinstance(value, Tensor) and value.shape == shape else value


def look_without(
    model: nn.Module,
    batches: Iterable[MicroBatch],
    run: Run,
    groups: list[TiedTokens],
    features: list[Tensor],
    read: Callable[[MicroBatch], list[Tensor]],
) -> list[Tensor]:
    """Returns the features of all rows, those of the groups' rows as they are without the groups' tokens; [] where that fails.

    Args:
        model: unwrapped, in evaluation mode; of sharded weights nothing is looked at.
        batches: the data set, each sample once; of several processes, each its share.
        run: of the training.
        groups: of `tied_tokens`, equal on all processes.
        features: kinds of features of all rows, (N, D) each, equal on all processes.
        read: the kinds of features of a batch.
    """
    if not groups or is_sharded(model):
        return []
    removal = Removal.of(groups, run.device)
    chosen = removal.rows.any(0)
    slot = torch.where(chosen, chosen.cumsum(0) - 1, -1)
    count = int(chosen.sum())
    sums = [torch.zeros(count, kind.shape[1] + 1, device=run.device) for kind in features]
    failed = False
    padding = getattr(getattr(model, "config", None), "pad_token_id", None)

    def look(batch: MicroBatch) -> None:
        nonlocal failed
        slots = slot[batch.positions]
        slots = slots[slots >= 0]
        if failed or not len(slots):
            return
        inputs = removal.without(batch.inputs, batch.positions, padding)
        if inputs is None:
            failed = True
            return
        part = MicroBatch(inputs, batch.targets[slot[batch.positions] >= 0], None)
        try:
            found = read(part)
        except Exception:  # whatever a model raises at texts that it was not given
            failed = True
            return
        if [kind.shape[1] for kind in found] != [kind.shape[1] for kind in features]:
            failed = True
            return
        for total, kind in zip(sums, found):
            total.index_add_(0, slots, torch.cat([kind.float(), kind.new_ones(len(kind), 1).float()], 1))

    for_each(run, batches, look)
    if bool(run.total(torch.tensor(float(failed), device=run.device)) > 0):
        return []
    out = []
    for kind, own in zip(features, sums):
        total = run.total(own)  # a row that several processes have counts once
        if bool((total[:, -1] == 0).any()) or not bool(total.isfinite().all()):
            return []
        replaced = kind.clone()
        replaced[chosen] = (total[:, :-1] / total[:, -1:]).to(kind.dtype)
        out.append(replaced)
    return out
