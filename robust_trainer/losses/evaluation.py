"""The loss of an evaluation: the Trainer's own, and what it lacks for modules that return bare outputs."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from ..models.outputs import logits_of
from ..models.peers import PeerModel
from ..models.problem import number_of_classes
from ..problems import Problem
from ..problems.unlabelled import without_labels


def plain_loss(trainer: Any, base: Any, model: nn.Module, inputs: Any, return_outputs: bool, items: Any, problem: Problem) -> Any:
    """Returns the loss of an evaluation: the Trainer's own, or the problem's where a module or transformers' heads have none.

    Args:
        trainer: whose label names, smoothing and ``compute_loss_func`` count.
        base: the Trainer's ``compute_loss``.
        model: as it came.
        inputs: the batch.
        return_outputs: whether (loss, outputs) is returned.
        items: ``num_items_in_batch``.
        problem: what kind of problem the samples pose.
    """
    if not problem.labelled:
        return base(model, without_labels(inputs, trainer.args.label_names), return_outputs, items)
    name = next((n for n in trainer.label_names if isinstance(inputs.get(n), Tensor)), None)
    if name is not None:
        inputs = {**inputs, name: problem.model_labels(inputs[name])}  # as in training: any type that holds the labels will do
        _check(problem, name, inputs[name], trainer.accelerator.unwrap_model(model))
    if trainer.compute_loss_func is not None:
        return _users(base, model, inputs, return_outputs, items)
    bare = trainer.accelerator.unwrap_model(model)
    takes = inspect.signature((bare.peers[0] if isinstance(bare, PeerModel) else bare).forward).parameters
    name = next((n for n in trainer.label_names if n in inputs), None)
    takes_labels = name in takes or any(p.kind is p.VAR_KEYWORD for p in takes.values())
    if name is None or (takes_labels and problem.objective is not None):
        return base(model, inputs, return_outputs, items)
    labels = inputs[name]
    outputs = model(**{k: v for k, v in inputs.items() if k != name})
    logits = logits_of(outputs)
    if logits is None:
        raise ValueError(f"the model returned {type(outputs).__name__}, expected logits of shape (B, C).")
    loss = problem.evaluation_loss(logits, labels, trainer.args.label_smoothing_factor)
    if not return_outputs:
        return loss
    return loss, (outputs if isinstance(outputs, dict) else {"logits": logits})


def _check(problem: Problem, name: str, labels: Tensor, model: nn.Module) -> None:
    """Raises ``ValueError`` for labels out of range that no column could be checked for: of a transform, or of other data sets."""
    if problem.one_class and (labels.dim() != 1 or labels.is_floating_point()):
        return  # mixtures of classes, or one label a token, which transformers' heads take
    told = getattr(getattr(model, "config", None), "num_labels", None)
    try:
        problem.check_labels(name, labels, told, range(len(labels)))
        return
    except ValueError:
        pass  # of a config that names no classes the number is a default
    try:
        problem.check_labels(name, labels, number_of_classes(model), range(len(labels)))
    except ValueError as error:
        raise ValueError(f"an evaluation batch: {str(error).replace('training row', 'row')}") from error


def _users(base: Any, model: nn.Module, inputs: Any, return_outputs: bool, items: Any) -> Any:
    outcome = base(model, inputs, True, items)
    loss, outputs = outcome[0].mean(), outcome[1]  # one loss per sample, as training needs it
    if isinstance(outputs, Tensor):
        outputs = {"logits": outputs}
    return (loss, outputs) if return_outputs else loss
