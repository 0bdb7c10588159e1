"""One pass over a data set in evaluation mode that leaves no trace: batches as the model takes them, and its last layers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import default_data_collator

from ..forwards import logits_of, untouched
from ..peers import PeerModel
from ..scan import _same_random_state


@dataclass(frozen=True)
class Pass:
    """How a data set is read: rows in order, labels taken out under one of the names, everything else by the forward's names.

    collate None: transformers' ``default_data_collator``, of the columns that the forward names. device None: where the model is.
    """

    dataset: Any
    collate: Callable[[list[Any]], Any] | None = None
    batch_size: int = 256
    label_names: Sequence[str] = ("labels", "label")
    device: torch.device | str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size!r}: expected a whole number of at least 1.")
        if not hasattr(self.dataset, "__len__") or not hasattr(self.dataset, "__getitem__") or isinstance(self.dataset, Mapping):
            kind = type(self.dataset).__name__
            raise ValueError(f"dataset is a {kind}: give one split with a length and rows by number, not a stream or a dict.")
        if len(self.dataset) == 0:
            raise ValueError("dataset is empty (0 rows): give one with samples.")

    def outputs(self, model: nn.Module) -> Iterator[tuple[Any, Tensor, Tensor]]:
        """Per batch what the model returned, its logits (B, C) float32 and the given labels (B,), in order.

        In evaluation mode without gradients; modes and random state are as before when the generator is closed.
        Raises a one-line ``ValueError`` where there are no labels or logits that fit.
        """
        device = self.device if self.device is not None else next((p.device for p in model.parameters()), torch.device("cpu"))
        labelled = {*self.label_names, "labels", "label", "label_ids"}
        names = _names(model)

        def of_the_model(rows: list[Any]) -> Any:
            if not isinstance(rows[0], Mapping):
                raise ValueError(f"a row is a {type(rows[0]).__name__}, expected a dict with labels: pass collate.")
            kept = [{k: v for k, v in row.items() if names is None or k in names or k in labelled} for row in rows]
            return default_data_collator(kept)

        loader = DataLoader(self.dataset, self.batch_size, collate_fn=self.collate or of_the_model)
        for batch in loader:
            if not isinstance(batch, Mapping):
                raise ValueError(f"a batch is a {type(batch).__name__}, expected a dict with labels: pass collate.")
            name = next((n for n in self.label_names if n in batch), None)
            if name is None:
                raise ValueError(f"no labels in the batch: expected one of {list(self.label_names)}, got {sorted(batch)}.")
            labels = torch.as_tensor(batch[name])
            rest = {k: v for k, v in batch.items() if k not in labelled}
            taken = {k: v for k, v in rest.items() if names is None or k in names}
            if not taken:
                kind = type(model).__name__
                raise ValueError(f"{kind} takes {sorted(names or ())} but the batch has {sorted(rest)}: rename the columns.")
            outputs = model(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in taken.items()})
            yield outputs, _logits(outputs, model, labels), labels


def _names(model: nn.Module) -> set[str] | None:
    """What the model's forward names; None where it names nothing and takes anything."""
    bare = model.peers[0] if isinstance(model, PeerModel) else model
    if hasattr(bare, "get_base_model"):  # PEFT's forward takes anything
        bare = bare.get_base_model()  # type: ignore[operator]
    parameters = inspect.signature(bare.forward).parameters.values()
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return None if not names and any(p.kind is p.VAR_KEYWORD for p in parameters) else names


def _logits(outputs: Any, model: nn.Module, labels: Tensor) -> Tensor:
    logits = logits_of(outputs)
    kind = type(model).__name__
    if logits is None or logits.dim() != 2 or len(logits) != len(labels):
        got = "none" if logits is None else str(tuple(logits.shape))
        raise ValueError(f"{kind} returned logits {got} for {len(labels)} samples, expected (N, C): use a classifier.")
    if labels.dim() != 1 or labels.is_floating_point():
        got = f"{tuple(labels.shape)} {labels.dtype}"
        raise ValueError(f"labels are {got}, expected one class number each: detectors are for single-label classification.")
    if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
        wrong = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
        raise ValueError(f"label {wrong} is outside 0 to {logits.shape[1] - 1}, the model's classes: mend the labels or the model.")
    return logits.float()


@contextmanager
def traceless(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode without gradients; its modes and all random states are restored, exceptions or not."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.no_grad(), untouched(model, "eval"), _same_random_state(device):
        yield


@dataclass
class Layers:
    """What a forward ran through: the last `Linear` of each width with its input and output, the last convolution and after.

    ``after``: the leaf modules that followed the convolution as long as they kept its channels, with the last one's output.
    """

    linear: dict[int, tuple[nn.Linear, Tensor, Tensor]] = field(default_factory=dict)
    conv: nn.Module | None = None
    channels: Tensor | None = None
    after: list[nn.Module] = field(default_factory=list)
    _open: bool = False

    def see(self, module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> None:
        if isinstance(module, nn.Linear):
            self.linear[module.out_features] = (module, inputs[0] if inputs else named["input"], output)
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            self.conv, self.channels, self.after, self._open = module, output, [], True
        elif self._open and self.channels is not None:
            was = self.channels
            kept = isinstance(output, Tensor) and output.dim() == was.dim() and output.shape[:2] == was.shape[:2]
            self._open = kept
            if kept:
                self.channels = output
                self.after.append(module)


@contextmanager
def watched(model: nn.Module) -> Iterator[Layers]:
    """Within it a forward of the model (of a `PeerModel`: of its first network) fills the `Layers`; its hooks are then removed."""
    bare = model.peers[0] if isinstance(model, PeerModel) else model
    layers = Layers()
    # the leaves, and layers that have others inside (LoRA's are no Linear themselves, but hold one)
    leaves = [m for m in bare.modules() if isinstance(m, nn.Linear) or next(m.children(), None) is None]
    handles = [m.register_forward_hook(layers.see, with_kwargs=True) for m in leaves]
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def last_linear(layers: Layers, outputs: Any, logits: Tensor) -> tuple[nn.Linear, Tensor]:
    """The last `Linear` that ran and is as wide as the logits (B, C), and its input, (B, D) float32.

    Where it ran on every token, (B, T, D), the token whose output the logits are; more axes are flattened.
    Raises a one-line ``ValueError`` where there is none.
    """
    if logits.shape[1] not in layers.linear:
        raise ValueError(f"no linear layer of {logits.shape[1]} outputs ran in the model: give one whose last layer is linear.")
    module, given, output = layers.linear[logits.shape[1]]
    if isinstance(outputs, dict) and outputs.get("peer_logits") is not None:
        logits = outputs["peer_logits"][:, 0]
    if len(given) != len(logits):
        got = f"{tuple(given.shape)} for {len(logits)} samples"
        raise ValueError(f"the last linear layer's input is {got}, expected one row each: the features cannot be told apart.")
    if given.dim() == 3:
        away = (output.float() - logits.float().unsqueeze(1)).abs().amax(-1).flip(1)
        nearest, token = away.min(1)
        if bool((nearest > 1e-2 * (1.0 + logits.float().abs().amax(1))).any()):
            raise ValueError("the last linear layer runs on every token and no token's output is the logits: features are unknown.")
        given = given.flip(1)[torch.arange(len(given), device=given.device), token]
    return module, given.detach().flatten(1).float()
