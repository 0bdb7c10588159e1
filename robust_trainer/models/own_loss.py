"""The loss on labels that a model's own ``forward`` computes, where it is another than its problem's: found, for each sample."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..problems import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Problem
from ..problems.base import full_precision
from ..types import ForwardOutput
from .outputs import logits_of

#: torch's losses of logits and labels, which give one number for each sample with ``reduction="none"``.
_CRITERIA = (F.cross_entropy, F.binary_cross_entropy_with_logits, F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)
#: Where models keep a loss of logits and labels that can be asked sample by sample; transformers' own is ``loss_function``.
_PLACES = ("loss_function", "loss_fn", "loss_fct", "criterion", "loss_func", "loss")
_LOGITS = ("logits", "pooled_logits", "input", "inputs", "outputs", "output", "predictions", "preds", "pred", "z", "x")
_LABELS = ("labels", "targets", "target", "label", "y")


@dataclass(frozen=True)
class OwnLoss:
    """A model's own loss on labels, of each sample.

    Args:
        of_network: logits (B, C) and labels, (B,) or (B, K), of one network -> losses (B,).
    """

    of_network: Callable[[Tensor, Tensor], Tensor]
    problems: ClassVar[tuple[Problem, ...]] = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)

    def __call__(self, output: ForwardOutput, targets: Tensor) -> Tensor:
        """Returns the loss of each sample, (M, B).

        Args:
            output: a forward pass of M networks on B samples.
            targets: class labels (M, B), or for other problems floats (M, B, K).
        """
        return torch.stack([self.of_network(full_precision(z), y) for z, y in zip(output.logits, targets)])


@torch.no_grad()
def find_own_loss(
    model: nn.Module, inputs: Mapping[str, Any], label_name: str, problem: Problem, root: nn.Module | None = None
) -> tuple[OwnLoss | None, str]:
    """Returns the model's own loss of each sample, and what was found in words: empty where it is the problem's plain one, or none.

    Classes' weights and label smoothing are seen in the call of torch's loss. Of other losses the value on this batch tells.
    (None, words): there is a loss of its own, but not of each sample.

    Args:
        model: one network, unwrapped.
        inputs: a batch with its labels, on the device.
        label_name: the key of the labels.
        problem: what a sample is.
        root: the model that it is a part of where that one must be called, being sharded over processes.
    """
    takes = inspect.signature(model.forward).parameters
    if label_name not in takes and not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        return None, ""
    with _CriterionCalls() as seen:
        try:
            outputs = _outputs(model, root, {**inputs, label_name: problem.model_labels(inputs[label_name])})
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError):
            return None, ""  # its loss cannot be had at all: the method does not ask for it, either
    loss = _loss_of(outputs)
    targets = problem.targets(inputs[label_name])
    logits = logits_of(outputs[1:] if isinstance(outputs, tuple) else outputs)
    if loss is None or logits is None or logits.numel() != len(targets) * logits.shape[-1] and logits.dim() > 1:
        return None, ""
    rows = full_precision(logits.reshape(len(targets), -1))
    if problem.one_class and int(targets.max()) >= rows.shape[-1]:
        return None, ""  # told with the batch's other labels
    plain, own = float(problem.loss(rows[None], targets[None]).mean()), float(loss.float().mean())
    near = 2e-2 if logits.element_size() < 4 else 1e-4

    def equal(value: float) -> bool:
        return abs(value - own) <= near * max(abs(own), 1e-3) or (value != value and own != own)

    for call in reversed(seen.calls):
        if call.of(rows, targets) and equal(float(call.value)) and (not equal(plain) or call.changed):
            return OwnLoss(call.losses), call.words
    if equal(plain):
        return None, ""
    for place, ask in _asked(model):
        for each in _each(ask):
            try:
                if equal(float(full_precision(each(rows, targets)).mean())):
                    return OwnLoss(each), f"{type(model).__name__}.{place}"
            except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError):
                continue
    return None, f"{own:.4g} on the first batch, where the mean {problem.objective} of its logits is {plain:.4g}"


def _outputs(model: nn.Module, root: nn.Module | None, inputs: Mapping[str, Any]) -> Any:
    """What the model returns, where the root is called or by itself."""
    if root is None or root is model:
        return model(**inputs)
    kept: list[Any] = []
    handle = model.register_forward_hook(lambda module, args, output: kept.append(output))
    try:
        root(**inputs)
    finally:
        handle.remove()
    return kept[0]


def _loss_of(outputs: Any) -> Tensor | None:
    """The loss among a model's outputs for a batch with labels."""
    loss = outputs.get("loss") if isinstance(outputs, dict) else getattr(outputs, "loss", None)
    if loss is None and isinstance(outputs, tuple) and len(outputs) > 1 and isinstance(outputs[0], Tensor) and not outputs[0].dim():
        loss = outputs[0]
    return loss if isinstance(loss, Tensor) else None


@dataclass(frozen=True)
class _Call:
    """A call of one of torch's losses."""

    criterion: Callable[..., Tensor]
    given: Mapping[str, Any]
    value: Tensor

    @property
    def changed(self) -> bool:
        """Whether its settings make it another loss than the plain one, whatever its value."""
        weights = any(self.given.get(name) is not None for name in ("weight", "pos_weight"))
        return weights or bool(self.given.get("label_smoothing"))

    @property
    def words(self) -> str:
        plain = ("input", "target", "reduction")
        settings = [n for n, v in self.given.items() if n not in plain and (isinstance(v, Tensor) or v not in (None, 0.0, -100))]
        return f"{self.criterion.__name__}({', '.join(settings)})"

    def of(self, rows: Tensor, targets: Tensor) -> bool:
        """Whether it is the mean over these logits (B, C) and labels."""
        logits, labels = self.given["input"], self.given["target"]
        same = logits.numel() == rows.numel() and labels.numel() == targets.numel() and self.value.numel() == 1
        return same and torch.equal(logits.float().reshape(-1), rows.float().reshape(-1)) and torch.equal(
            labels.float().reshape(-1), targets.float().reshape(-1)
        )  # fmt: skip

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the losses (B,) of logits (B, C), a sample of weight w counts w-fold."""
        more = {name: value for name, value in self.given.items() if name not in ("input", "target")}
        losses = self.criterion(logits, labels, **{**more, "reduction": "none"})
        return losses.reshape(len(logits), -1).mean(1)


class _CriterionCalls(TorchFunctionMode):
    """Within it the calls of torch's losses are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = func(*args, **(kwargs or {}))
        if func in _CRITERIA:
            given = inspect.signature(func).bind(*args, **(kwargs or {})).arguments
            self.calls.append(_Call(func, {k: v for k, v in given.items() if k not in ("size_average", "reduce")}, value))
        return value


def _asked(model: Any) -> list[tuple[str, Callable[[Tensor, Tensor], Tensor]]]:
    """The model's functions of logits and labels, each with its name."""
    found: list[tuple[str, Callable[[Tensor, Tensor], Tensor]]] = []
    for place in _PLACES:
        function = getattr(model, place, None)
        if not callable(function):
            continue
        takes = inspect.signature(function.forward if isinstance(function, nn.Module) else function).parameters
        logits, labels = next((n for n in _LOGITS if n in takes), None), next((n for n in _LABELS if n in takes), None)
        if logits is not None and labels is not None:
            config = {"config": model.config} if "config" in takes else {}
            found.append((place, lambda z, y, f=function, a=logits, b=labels, c=config: f(**{a: z, b: y, **c})))  # type: ignore[misc]
    return found


def _each(ask: Callable[[Tensor, Tensor], Tensor]) -> list[Callable[[Tensor, Tensor], Tensor]]:
    """The loss of each sample by itself, as a batch of one: all at once, and for functions that refuse that, one by one."""

    def alone(logits: Tensor, label: Tensor) -> Tensor:
        return ask(logits.unsqueeze(0), label.unsqueeze(0)).reshape(-1).mean()

    return [torch.vmap(alone), lambda logits, labels: torch.stack([alone(z, y) for z, y in zip(logits, labels)])]
