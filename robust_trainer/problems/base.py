"""What kind of problem a sample poses: its labels, their checks, the loss and the scores of one sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """Returns ``x`` in float32 where its type is lower (bf16, fp16) or no float; float64 stays."""
    return x if x.is_floating_point() and x.element_size() >= 4 else x.float()


def matching_values(objective: str, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns outputs and targets, both (M, B, K), in float32 at least.

    Raises:
        ValueError: where the shapes differ, which would broadcast.
    """
    logits = full_precision(logits)
    if targets.shape != logits.shape:
        got, expected = tuple(targets.shape), tuple(logits.shape)
        raise ValueError(
            f"objective='{objective}' got targets of shape {got} for outputs of shape {expected}: they must be the same."
        )
    return logits, targets.to(logits.dtype)


def described(labels: Any) -> str:
    """Returns the type and shape of labels, for a message."""
    return f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__


class Problem(ABC):
    """What a sample is. Nothing else asks which kind it is: it asks for what differs between the kinds, here.

    A new kind is one file of this folder, with a subclass and the one object of it, which `robust_trainer.problems.PROBLEMS` finds.

    Attributes:
        name: transformers' ``problem_type`` where there is one.
        labels_are: what the labels are called in messages.
        objective: name of the loss that ``objective="auto"`` means, the one of transformers' heads; None: `loss`, which these
            heads do not have.
        one_class: whether each sample has one class label, so that rules within a class, the ledger's margins and predictions,
            label smoothing and losses on two forwards make sense.
        labelled: whether a batch has labels at all; without them the model itself returns a loss and a score of each sample.
    """

    name: ClassVar[str]
    labels_are: ClassVar[str]
    objective: ClassVar[str | None] = None
    one_class: ClassVar[bool] = False
    labelled: ClassVar[bool] = True

    def __repr__(self) -> str:
        return self.name

    # ---- labels ----------------------------------------------------------------------------------------------------------

    def split(self, inputs: Mapping[str, Any], label_names: Sequence[str]) -> tuple[dict[str, Any], Tensor]:
        """Returns what the model is given, and the targets (B,) or (B, K).

        Args:
            inputs: a batch on the training device, without the samples' positions.
            label_names: the Trainer's names of labels.

        Raises:
            ValueError: for a batch without labels.
        """
        name = next((n for n in (*label_names, "labels", "label") if n in inputs), None)
        if name is None:
            raise ValueError(f"no labels in the batch: expected one of {list(label_names)}, got {sorted(inputs)}.")
        return {k: v for k, v in inputs.items() if k != name}, self.targets(inputs[name])

    def targets(self, labels: Tensor) -> Tensor:
        """Returns a batch's labels as the losses take them: floats (B, K)."""
        return labels.float().view(len(labels), -1)

    def model_labels(self, labels: Tensor) -> Tensor:
        """Returns a batch's labels in the type that a model's own loss takes: floats, of the shape that they came in."""
        return full_precision(labels)

    def classes_of(self, targets: Tensor) -> Tensor:
        """Returns the class (B,) that a rule within each class takes a sample for; zeros where there are no classes."""
        return torch.zeros_like(targets[:, 0], dtype=torch.long)

    def ledger_labels(self, targets: Tensor) -> Tensor:
        """Returns the labels (B,) that the ledger and the audit show; -1 where they are no classes."""
        return torch.full_like(targets[:, 0], -1, dtype=torch.long)

    @abstractmethod
    def check_labels(self, name: str, labels: Any, outputs: int | None, index: Sequence[int]) -> None:
        """Checks the labels of a batch on the host, before it travels.

        Args:
            name: the key that they have in the batch.
            labels: what the collator made.
            outputs: number of the model's classes or outputs, None where it is not known yet.
            index: the samples' positions in the data set, for the message.

        Raises:
            ValueError: for labels of the wrong type, shape or range.
        """

    def check_targets(self, targets: Tensor, outputs: int) -> None:
        """Raises ``ValueError`` for targets (B, ...) that a model of so many outputs has not; called where these are known late."""
        return

    # ---- formulas, on outputs (M, B, C) and targets of M networks (M, B) or (M, B, K) ------------------------------------

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns the loss of each sample (M, B), differentiable, in float32 at least: that of transformers' heads."""

    def evaluation_loss(self, logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        """Returns the mean loss of a batch, scalar.

        Args:
            logits: of one network, as a module returned them.
            labels: of the batch, as they came.
            label_smoothing: the Trainer's, which only class labels have.
        """
        targets = self.targets(labels)
        return self.loss(logits.view(1, *targets.shape), targets.unsqueeze(0)).mean()

    def loss_score(self, logits: Tensor, targets: Tensor, huber_delta: float | None = None) -> Tensor:
        """Returns the score ``loss`` (M, B): how badly the targets are predicted.

        Args:
            logits: (M, B, C).
            targets: (M, B) or (M, B, K).
            huber_delta: a limit of residuals, in the targets' unit; without effect where targets are no numbers to predict.
        """
        return self.loss(logits, targets)

    @abstractmethod
    def gradient_norm(self, logits: Tensor, targets: Tensor, huber_delta: float | None = None) -> Tensor:
        """Returns the score ``prl-l`` (M, B): the norm of the loss's gradient in the outputs; arguments as `loss_score`."""

    def predictions(self, logits: Tensor) -> Tensor | None:
        """Returns what is predicted (M, B, K), to be compared between networks; None where no class is predicted."""
        return None

    # ---- a model's outputs -----------------------------------------------------------------------------------------------

    def read(self, outputs: Any, logits: Tensor | None, targets: Tensor, method: str) -> Tensor:
        """Returns the outputs of M networks (M, B, C).

        Args:
            outputs: what the model returned; of several networks a mapping with ``peer_logits`` (B, M, C) or (B, M).
            logits: the logits among them, None where there are none.
            targets: (B,) or (B, K).
            method: the method's name, for the message.

        Raises:
            ValueError: where the outputs do not fit the targets.
        """
        stacked = outputs.get("peer_logits") if isinstance(outputs, dict) else None
        if stacked is not None and stacked.dim() == 2:  # one output each may come squeezed
            each = [own for z in stacked.unbind(1) if (own := self._one_network(z)) is not None]
            rows: Tensor | None = torch.cat(each)
        else:
            rows = stacked.transpose(0, 1) if stacked is not None else self._one_network(logits)
        if rows is None or rows.dim() != 3 or rows.shape[1] != len(targets):
            got = "none" if rows is None else str(tuple(rows.shape[1:]))
            raise ValueError(
                f"method '{method}' needs {self._expected(len(targets))}, got {got}: use a sequence or image classification model, "
                "or method=None."
            )
        self._check_width(rows, targets)
        return rows

    def _one_network(self, logits: Tensor | None) -> Tensor | None:
        if logits is None:
            return None
        return (logits.unsqueeze(1) if logits.dim() == 1 else logits).unsqueeze(0)  # one output may come squeezed

    def _expected(self, size: int) -> str:
        return f"outputs of shape ({size}, K)"

    def _check_width(self, rows: Tensor, targets: Tensor) -> None:
        if rows.shape[2] != targets.shape[1]:
            raise ValueError(
                f"the model has {rows.shape[2]} outputs but each sample {targets.shape[1]} targets (problem_type={self.name!r}): "
                f"pass num_labels={targets.shape[1]} to the model."
            )


def check_numbers(problem: Problem, name: str, labels: Any, outputs: int | None, index: Sequence[int], unit: bool) -> None:
    """Checks targets that are numbers, (B, K) or, unless in [0, 1], (B,) as well.

    Args:
        problem: for the message.
        name: the key that they have in the batch.
        labels: what the collator made.
        outputs: number of the model's outputs, None where unknown.
        index: the samples' positions in the data set.
        unit: whether they must lie in [0, 1].

    Raises:
        ValueError: for another shape, NaN, infinities and, where ``unit``, numbers outside [0, 1].
    """
    width = labels.shape[1] if isinstance(labels, Tensor) and labels.dim() == 2 else 1
    if not isinstance(labels, Tensor) or labels.dim() not in ((2,) if unit else (1, 2)) or width != (outputs or width):
        raise ValueError(
            f"'{name}' is {described(labels)}, expected {'numbers in [0, 1]' if unit else 'numbers'} of shape "
            f"(B, {outputs or 'K'}) for problem_type={problem.name!r}: repair the labels, num_labels or problem_type."
        )
    wrong = ~torch.isfinite(labels.float()) | ((labels < 0) | (labels > 1) if unit else False)
    bad = [index[i] for i in wrong.reshape(len(index), -1).any(1).nonzero().flatten().tolist()]
    if bad:
        reason = "outside [0, 1]" if unit else "NaN or infinite"
        raise ValueError(f"'{name}' is {reason} in training rows {bad[:5]}: repair or remove these rows.")
