"""Clean accuracy, poison accuracy and attack success rate, of numpy predictions and of a Trainer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ..data.columns import arrow_column, label_column, read_column
from ..data.label_rules import ANY_OTHER
from ..data.labels import check_model_names
from ..data.mapping import ATTACK_TARGET, CLEAN_LABEL

logger = logging.getLogger(__name__)


def predicted_classes(predictions: Any) -> np.ndarray:
    """Returns the predicted class of each sample (N,) as int64, -1 where the logits are NaN (a wrong answer for every label).

    Args:
        predictions: Logits (N, C), integer class ids (N,), a tuple or mapping whose logits come under 'logits' or first, or a list
            of batches of these (``eval_do_concat_batches=False``).

    Raises:
        ValueError: For other shapes.
    """
    if isinstance(predictions, Mapping):
        predictions = predictions["logits"] if "logits" in predictions else next(iter(predictions.values()), None)
    elif isinstance(predictions, tuple):
        predictions = predictions[0]
    elif _is_batches(predictions):
        return np.concatenate([predicted_classes(batch) for batch in predictions])
    if predictions is None:
        raise ValueError("predictions is None: set prediction_loss_only=False, so that the Trainer keeps the logits.")
    array = np.asarray(predictions)
    if array.ndim == 1 and array.dtype.kind in "iu":
        return array.astype(np.int64)
    if array.ndim != 2 or array.shape[1] < 2:
        raise ValueError(
            f"predictions has shape {array.shape} and dtype {array.dtype}, expected logits (N, C) with C >= 2 or integer classes "
            "(N,): return the logits first."
        )
    classes = array.argmax(axis=1).astype(np.int64)
    broken = np.isnan(array).any(axis=1) if array.dtype.kind == "f" else np.zeros(len(array), dtype=bool)
    if broken.any():
        logger.warning("predictions are NaN in %d of %d rows, counted as wrong: training diverged?", broken.sum(), len(array))
    return np.where(broken, -1, classes)


def _is_batches(values: Any) -> bool:
    """Whether this is a list of arrays or tuples, one for each batch, rather than a nested list of numbers or of rows."""
    first = values[0] if isinstance(values, list) and values else None
    if isinstance(first, np.ndarray):
        return first.ndim == 2 or (first.ndim == 1 and first.dtype.kind in "iu")
    return isinstance(first, tuple | Mapping)


def _label_ids(values: Any) -> Any:
    """The Trainer's label_ids as one array: the first of several label fields, batches joined."""
    if _is_batches(values):
        return np.concatenate([_label_ids(batch) for batch in values])
    return values[0] if isinstance(values, tuple) else values


def _labels(name: str, values: Any, n: int) -> np.ndarray:
    labels = np.asarray(values)
    if labels.shape != (n,) or n == 0 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{name} has shape {labels.shape} and dtype {labels.dtype}: give integer classes, one for each of {n} predictions."
        )
    return labels


def accuracy(predictions: Any, labels: Any) -> float:
    """Returns the fraction of samples, in [0, 1], whose predicted class is the label.

    Args:
        predictions: Logits (N, C) or class ids (N,), see `predicted_classes`.
        labels: (N,) integers.

    Raises:
        ValueError: For no samples or shapes that do not fit.
    """
    classes = predicted_classes(predictions)
    return float((classes == _labels("labels", labels, len(classes))).mean())


def clean_accuracy(predictions: Any, labels: Any) -> float:
    """Returns the top-1 accuracy in [0, 1] on images without trigger against the true label (Backdoor sec. 5): `accuracy`.

    Args:
        predictions: Logits (N, C) or class ids (N,), see `predicted_classes`.
        labels: True classes (N,).
    """
    return accuracy(predictions, labels)


def poison_accuracy(predictions: Any, labels: Any) -> float:
    """Returns the top-1 accuracy in [0, 1] on TRIGGERED images against the TRUE label; higher is a better defence.

    Backdoor sec. 5. Not
    1 - attack success rate: a triggered image may be wrong in another way than the attacker wants. Arguments as `accuracy`.

    Args:
        predictions: Logits (N, C) or class ids (N,), see `predicted_classes`.
        labels: True classes (N,).
    """
    return accuracy(predictions, labels)


def attack_success_rate(predictions: Any, labels: Any, attack_targets: Any) -> float:
    """Returns the fraction, in [0, 1], of triggered images predicted as the attack target; lower is a better defence.

    Over the images whose true label is not the target already, since those prove nothing: ASR = #{i : f(x_i + t) = a_i, y_i != a_i}
    / #{i : y_i != a_i}.

    Args:
        predictions: Logits (N, C) or class ids (N,).
        labels: The true classes y (N,).
        attack_targets: The classes a that the attacker wants, (N,) or one integer; -1 where any wrong class is a success
            (untargeted labels), but no class at all (NaN logits) is none.

    Raises:
        ValueError: For shapes that do not fit, and when no image counts.
    """
    classes = predicted_classes(predictions)
    true = _labels("labels", labels, len(classes))
    targets = np.full(len(classes), attack_targets) if np.ndim(attack_targets) == 0 else attack_targets
    targets = _labels("attack_targets", targets, len(classes))
    counted = true != targets
    if not counted.any():
        raise ValueError(f"attack_targets equals labels for all {len(classes)} images: give images of other classes.")
    wrong = (classes != true) & (classes != ANY_OTHER)
    return float(np.where(targets == ANY_OTHER, wrong, classes == targets)[counted].mean())


def compute_accuracy(prediction: Any) -> dict[str, float]:
    """Returns ``{"accuracy": a}``, a in [0, 1]; for ``Trainer(compute_metrics=compute_accuracy)``.

    With ``eval_dataset={"clean": clean, "poison": triggered}`` the Trainer logs ``eval_clean_accuracy`` and
    ``eval_poison_accuracy`` at each evaluation.

    Args:
        prediction: An EvalPrediction; the logits come first of several outputs.
    """
    return {"accuracy": accuracy(prediction.predictions, _label_ids(prediction.label_ids))}


def mean_over_last(log_history: Sequence[Mapping[str, Any]], key: str, k: int = 10) -> float:
    """Returns the mean of the last ``k`` values of ``key`` in ``trainer.state.log_history``.

    Backdoor sec. 5 averages the last 10 epochs, as without clean validation data no epoch can be picked; evaluate once an epoch
    (``eval_strategy="epoch"``) for this. k >= 1 entries.

    Args:
        log_history: Of ``trainer.state``.
        key: Name of a logged figure.
        k: So many entries, >= 1.


    Raises:
        ValueError: When the key is missing (it lists the keys), or has fewer than k values.
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k={k!r} must be an integer of at least 1: give the number of last values, for instance 10.")
    values = [entry[key] for entry in log_history if key in entry]
    if not values:
        raise ValueError(f"key={key!r} is not in log_history: choose one of {sorted({k for entry in log_history for k in entry})}.")
    if len(values) < k:
        raise ValueError(f"key={key!r} has {len(values)} values in log_history, k={k} wanted: evaluate more often or lower k.")
    return float(np.mean(values[-k:]))


def evaluate_backdoor(trainer: Any, clean_dataset: Any, triggered_dataset: Any) -> dict[str, float]:
    """Returns ``clean_accuracy``, ``poison_accuracy``, ``attack_success_rate`` (in [0, 1]) and ``n``, the triggered images.

    The two metrics of Backdoor sec. 5 and the attack success rate, from ``trainer.predict`` on both data sets. True labels are the
    ``clean_label`` column, else the label column; attack targets the ``attack_target`` column of ``triggered_dataset``, which
    `corruptions.trigger_all` with a label rule writes. Training mode, compute_metrics and the CPU's random state are left as found.

    Args:
        trainer: With the model to evaluate.
        clean_dataset: The test images.
        triggered_dataset: The same with the trigger, of `trigger_all`.


    Raises:
        ValueError: When columns are missing or predictions do not come in the data sets' order.
    """
    if ATTACK_TARGET not in getattr(triggered_dataset, "column_names", ()):
        raise ValueError(
            f"triggered_dataset has no '{ATTACK_TARGET}' column: make it with trigger_all(dataset, trigger, label_rule=...)."
        )
    clean, clean_labels = _predict(trainer, clean_dataset, "clean_dataset")
    triggered, true_labels = _predict(trainer, triggered_dataset, "triggered_dataset")
    return {
        "clean_accuracy": clean_accuracy(clean, clean_labels),
        "poison_accuracy": poison_accuracy(triggered, true_labels),
        "attack_success_rate": attack_success_rate(triggered, true_labels, _attack_targets(triggered_dataset)),
        "n": len(triggered),
    }


def _attack_targets(dataset: Any) -> np.ndarray:
    """The classes (N,) that the attacker wants; missing ones, as saved class labels have them, are `ANY_OTHER`."""
    return arrow_column(dataset, ATTACK_TARGET).fill_null(ANY_OTHER).to_numpy(zero_copy_only=False)


def _predict(trainer: Any, dataset: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Predicted classes and true labels (N,), both in the data set's order."""
    check_model_names(dataset, trainer.model, ("labels", "label"), name)
    with _left_as_found(trainer):
        output = trainer.predict(dataset)
    classes, label_ids = predicted_classes(output.predictions), _label_ids(output.label_ids)
    if len(classes) != len(dataset):
        raise ValueError(f"{name} has {len(dataset)} rows but {len(classes)} predictions: set dataloader_drop_last=False.")
    if not hasattr(dataset, "column_names"):  # a plain torch data set: its labels come with the predictions
        if label_ids is None:
            raise ValueError(f"{name} gave no labels: return them as 'labels', or pass a datasets.Dataset with a label column.")
        return classes, np.asarray(label_ids)
    column = label_column(dataset) if CLEAN_LABEL not in dataset.column_names or label_ids is not None else CLEAN_LABEL
    labels = read_column(dataset, column)
    if label_ids is not None and not np.array_equal(labels, label_ids):
        raise ValueError(
            f"{name} came back in another order than its '{column}' column: set train_sampling_strategy='random' "
            "and let no transform change the labels."
        )
    return classes, read_column(dataset, CLEAN_LABEL) if CLEAN_LABEL in dataset.column_names else labels


@contextmanager
def _left_as_found(trainer: Any) -> Iterator[None]:
    modes = [(module, module.training) for module in trainer.model.modules()]
    compute_metrics, trainer.compute_metrics = trainer.compute_metrics, None
    loader = trainer.callback_handler.eval_dataloader
    try:
        with torch.random.fork_rng(devices=[]):  # a data loader draws its base seed from the CPU's generator
            yield
    finally:
        trainer.compute_metrics = compute_metrics
        trainer.callback_handler.eval_dataloader = loader
        for module, training in modes:
            module.training = training
