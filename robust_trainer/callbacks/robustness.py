"""Double overfitting: natural and robust accuracy through training, the best checkpoint by held-out data, best and last."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from torch import Tensor, nn
from transformers import TrainerCallback

from ..attacks.autoattack import make_attacks, read_eps
from ..data.columns import check_dataset, label_column, read_column, read_labels
from ..data.images import input_space
from ..data.labels import check_model_names, rows_by_class
from ..data.mapping import IS_CORRUPTED
from ..evaluation.robustness import Robustness, evaluate_robustness
from ..models.modes import preserve_state, preserve_weights
from ..models.peers import PeerModel
from ..models.problem import number_of_classes
from ..models.sharding import is_sharded
from ..reporting.atomic_files import write_text
from ..reporting.untrusted import read_json
from .best_weights import RECORD, load_best, save_best
from .robustness_plot import HELD_NATURAL, HELD_ROBUST, NATURAL, ROBUST, best, plot_curves, plot_history, summarise, table, tracked

__all__ = ["RobustnessCallback", "hold_out", "plot_curves", "summarise", "table", "tracked"]

logger = logging.getLogger(__name__)


class RobustnessCallback(TrainerCallback):
    """Natural and robust accuracy through training, the best checkpoint by held-out data, best and last at the end.

    With noisy labels both accuracies on a CLEAN test set fall after some epoch ("double overfitting", NRAT sec. 4): Best is
    the highest over training, Last the final epoch's, and best - last the degree of overfitting. For ``Trainer`` and
    ``RobustTrainer``; the training with and without it is the same, bit for bit. Deviation: its authors keep the checkpoint
    with the best PGD-20 accuracy ON THE TEST SET (their released code). Here the checkpoint is chosen on ``held_out``; the test
    set's best is reported beside it, named an oracle, since nobody who trains can know it.

    Args:
        dataset: The clean test set.
        held_out: Data to choose by: a part of the training data split off with `hold_out`, noisy as it is, or clean data if there
            is some; needed for ``keep_best``. Both give what the model takes and its labels.
        attacks_during: Names or `Attack`s of `evaluate_robustness`; robust accuracy is the worst of them.
        attacks_final: The same for the end, on last and best weights; None: no final evaluation.
        eps: Radius in [0, 1] pixels.
        norm: ``linf`` or ``l2``.
        every_epochs: How often to measure, in epochs, which may be fractional. The last step is always measured.
        every_steps: The same in optimizer steps; replaces every_epochs.
        max_samples: Of each data set, while training and at the end; None: all.
        final_samples: Of each data set, while training and at the end; None: all.
        oracle_final: Hold the oracle's weights in memory (never on disk) to evaluate them at the end as well.
        output_dir: Gets best/, robustness.json and robustness_curve.png; default: the Trainer's.
        processing_class: The normalisation; default: the Trainer's.
        image_mean: The normalisation; default: the Trainer's.
        image_std: The normalisation; default: the Trainer's.
        data_collator: Default: the Trainer's kind.
        seed: Of the attacks' random numbers.
        log: Called with the figures, for instance ``trainer.log``, which shows them to TensorBoard and others; they are in
            ``trainer.state.log_history`` in any case (natural_accuracy, robust_accuracy, held_out_...).

    Raises:
        ValueError: In one line, here or at the start of training for what only the Trainer knows.
    """

    def __init__(
        self, dataset: Any, *, held_out: Any = None, attacks_during: Any = ("pgd-10",),
        attacks_final: Any = ("pgd-20", "cw-20", "autoattack"), eps: float | str = 8 / 255, norm: str = "linf",
        every_epochs: float = 1.0, every_steps: int | None = None, max_samples: int | None = 1000,
        final_samples: int | None = None, batch_size: int = 128, keep_best: bool = True, oracle_final: bool = False,
        output_dir: str | Path | None = None, processing_class: Any = None, image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None, data_collator: Any = None, seed: int = 0,
        log: Callable[[dict[str, float]], Any] | None = None,
    ):  # fmt: skip
        _check(dataset, held_out, every_epochs, every_steps, max_samples, final_samples, batch_size, keep_best)
        self.threat: dict[str, Any] = {"eps": read_eps(eps, norm), "norm": norm}
        self._attacks = {"during": _listed(attacks_during), "final": _listed(attacks_final)}
        self.attacks_during = _names(self._attacks["during"], "attacks_during", self.threat)
        self.attacks_final = None if attacks_final is None else _names(self._attacks["final"], "attacks_final", self.threat)
        self.dataset, self.held_out, self.keep_best, self.oracle_final = dataset, held_out, keep_best, oracle_final
        self.every_epochs, self.every_steps = every_epochs, every_steps
        self.max_samples, self.final_samples = max_samples, final_samples
        self._common = {**self.threat, "batch_size": batch_size, "data_collator": data_collator, "seed": seed, "progress": False}
        self._inputs = {"processing_class": processing_class, "image_mean": image_mean, "image_std": image_std}
        self._folder, self.log = output_dir, log
        self.history: list[dict[str, float]] = []
        self.kept: dict[str, float] | None = None
        self.final: dict[str, dict[str, float]] = {}
        self._oracle: tuple[float, dict[str, Tensor]] | None = None
        self._before = 0.0

    # ---- the Trainer's events --------------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Checks the set-up against the Trainer, and reads what an interrupted run left."""
        if args.load_best_model_at_end:
            raise ValueError(
                "load_best_model_at_end=True would have another model evaluated as 'last': set it to False; "
                f"{'best/ holds the best weights' if self.keep_best else 'keep_best=True keeps the best weights'}."
            )
        if is_sharded(model):
            raise ValueError(
                "RobustnessCallback attacks and keeps a whole model, which FSDP shards: use DDP, or evaluate_robustness on "
                "the saved model."
            )
        inputs = self._inputs
        self._space: dict[str, Any] = {
            "processing_class": inputs["processing_class"] or kwargs.get("processing_class"),
            "image_mean": inputs["image_mean"] if inputs["image_mean"] is not None else getattr(args, "image_mean", None),
            "image_std": inputs["image_std"] if inputs["image_std"] is not None else getattr(args, "image_std", None),
        }
        if input_space(self._space["processing_class"], self._space["image_mean"], self._space["image_std"]) is None:
            raise ValueError(
                "image_mean is not known, and eps is in pixels: pass processing_class=<the image processor>, or image_mean=[...] "
                "and image_std=[...] (0 and 1 for inputs already in [0, 1])."
            )
        for when, attacks in self._attacks.items():
            if attacks:
                _names(attacks, f"attacks_{when}", self.threat, number_of_classes(model) or 10)
        for name, data in (("dataset", self.dataset), ("held_out", self.held_out)):
            check_model_names(data, model, ("labels", "label"), f"{name} of RobustnessCallback")
        self.folder = Path(self._folder if self._folder is not None else args.output_dir)
        self.history, self.final, self._oracle = tracked(state.log_history), {}, None
        self.kept = self._recall(state) if self.keep_best else None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Counts the steps of the epoch."""
        self._before = float(state.epoch or 0.0)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measures where it is time."""
        if self.every_steps is not None:
            due = state.global_step % self.every_steps == 0
        else:
            due = _intervals(state.epoch, self.every_epochs) > _intervals(self._before, self.every_epochs)
        if due or state.global_step == state.max_steps:
            self._measure(state, control, model)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Evaluates last and best weights by the final attacks, and writes table and curves."""
        if state.global_step and (not self.history or self.history[-1]["step"] != state.global_step):  # stopped early
            self._measure(state, control, model)
        if not self.history:
            return
        if self.attacks_final is not None:
            self._evaluate_final(model)
        if state.is_world_process_zero:
            self.write()

    # ---- measuring -------------------------------------------------------------------------------------------------------

    def _accuracies(self, model: nn.Module, data: Any, when: str, limit: int | None) -> Robustness:
        return evaluate_robustness(model, data, self._attacks[when], max_samples=limit, **self._common, **self._space)

    def _measure(self, state: Any, control: Any, model: nn.Module) -> None:
        with preserve_state(model):
            result = self._accuracies(model, self.dataset, "during", self.max_samples)
            row = {NATURAL: float(result.clean_accuracy), ROBUST: float(result.worst_case)}
            if self.held_out is not None:
                result = self._accuracies(model, self.held_out, "during", self.max_samples)
                row |= {HELD_NATURAL: float(result.clean_accuracy), HELD_ROBUST: float(result.worst_case)}
            figures, row = dict(row), {**row, "epoch": float(state.epoch), "step": state.global_step}
            earlier = best(self.history, ROBUST)
            if self.oracle_final and (earlier is None or row[ROBUST] > earlier[ROBUST]):
                self._oracle = (row["step"], {k: v.detach().cpu().clone() for k, v in model.state_dict().items()})
            if self.keep_best and (self.kept is None or row[HELD_ROBUST] > self.kept[HELD_ROBUST]):
                self.kept, errors = row, None
                if isinstance(model, PeerModel):
                    held = [self._accuracies(peer, self.held_out, "during", self.max_samples) for peer in model.peers]
                    errors = [1 - float(result.worst_case) for result in held]
                if state.is_world_process_zero:
                    save_best(self.folder / "best", model, self._space["processing_class"], row, errors)
        self.history.append(row)
        logger.info("step %d: %s", state.global_step, figures)
        if self.log is not None:
            should_log = control.should_log  # Trainer.log resets it, and the Trainer's own entry of this step would be lost
            self.log(dict(figures))
            control.should_log = should_log
        if not any(entry.get("step") == state.global_step and ROBUST in entry for entry in state.log_history[-2:]):
            state.log_history.append(row)

    def _evaluate_final(self, model: nn.Module) -> None:
        """Everything in attacks_final on the last weights, the kept ones and, if asked, the oracle's."""
        last, oracle = self.history[-1]["step"], self._oracle
        done: dict[float, dict[str, float]] = {}
        with preserve_state(model):
            done[last] = self._final_figures(model)
            if self.kept is not None and self.kept["step"] not in done:
                with preserve_weights(model):
                    load_best(model, self.folder / "best")
                    done[self.kept["step"]] = self._final_figures(model)
            if oracle is not None and oracle[0] not in done:
                with preserve_weights(model):
                    model.load_state_dict(oracle[1])
                    done[oracle[0]] = self._final_figures(model)
        rows = {"best_on_test": best(self.history, ROBUST), "best_by_held_out": self.kept or best(self.history, HELD_ROBUST)}
        rows["last"] = self.history[-1]
        self.final = {name: done[row["step"]] for name, row in rows.items() if row is not None and row["step"] in done}

    def _final_figures(self, model: nn.Module) -> dict[str, float]:
        result = self._accuracies(model, self.dataset, "final", self.final_samples)
        return {"natural": float(result.clean_accuracy)} | {name: float(value) for name, value in result.accuracies.items()}

    # ---- the best checkpoint ---------------------------------------------------------------------------------------------

    def _recall(self, state: Any) -> dict[str, float] | None:
        """The row of best/ where training resumes and the weights there are this run's; a fresh training keeps nothing."""
        record = self.folder / "best" / RECORD
        if not state.global_step or not record.is_file():
            return None
        row = read_json(record, f"delete the folder {str(record.parent)!r}")
        if not isinstance(row.get("step"), int | float):
            raise ValueError(f"{str(record)!r} is damaged (no step in it): delete the folder {str(record.parent)!r}.")
        if row["step"] > state.global_step or row in self.history:  # later: kept by this run before it was interrupted
            return row
        logger.warning("%s is of another run: the best weights are kept anew from step %d.", record.parent, state.global_step)
        return None

    # ---- what came out ---------------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """Returns the rows best_on_test (the oracle), best_by_held_out, last, and the gaps best - last; see `summarise`."""
        return summarise(self.history, self.kept, self.final)

    def table(self) -> str:
        """Returns `summary` as text, in percent."""
        return table(self.summary(), self.attacks_during, _size(self.dataset, self.max_samples))

    def write(self) -> None:
        """Writes robustness.json and robustness_curve.png to the output folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {
            **self.threat, "attacks_during": self.attacks_during, "attacks_final": self.attacks_final,
            "samples_during": _size(self.dataset, self.max_samples), "samples_final": _size(self.dataset, self.final_samples),
            "held_out_samples": _size(self.held_out, self.max_samples), "summary": self.summary(), "history": self.history,
        }  # fmt: skip
        write_text(self.folder / "robustness.json", json.dumps(content, indent=1) + "\n")
        plot_history(self.history, self.folder / "robustness_curve.png", kept=self.kept, attacks=self.attacks_during)


def hold_out(
    dataset: datasets.Dataset, size: int | float, seed: int = 0, label: str | None = None
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Returns (train, held_out): ``size`` samples (or a share in (0, 1)) split off, each class by its share of the GIVEN labels.

    Args:
        dataset: The training data.
        size: Share in (0, 1), or number of samples, to hold out.
        seed: Of the choice.
        label: The label column; default 'label' or 'labels'. Order is kept, and the choice is that of ``seed``.

    Raises:
        ValueError: For a size that leaves one of the two empty, and for unusable labels.
    """
    check_dataset(dataset)
    n = len(dataset)
    count = round(size * n) if isinstance(size, float) and 0 < size < 1 else size
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or not 0 < count < n:
        raise ValueError(
            f"size={size!r} of {n} samples leaves one side empty: give a number from 1 to {n - 1}, or a share in (0, 1)."
        )
    labels, classes = read_labels(dataset, label_column(dataset, label))
    shares = np.bincount(labels, minlength=classes) * (int(count) / n)
    take = np.floor(shares).astype(int)
    take[np.argsort(take - shares, kind="stable")[: int(count) - take.sum()]] += 1  # largest remainders
    rng = np.random.default_rng(seed)
    held = np.zeros(n, dtype=bool)
    for rows, number in zip(rows_by_class(labels, classes), take):
        held[rng.permutation(rows)[:number]] = True
    return dataset.select(np.flatnonzero(~held)), dataset.select(np.flatnonzero(held))


# ---- the door -------------------------------------------------------------------------------------------------------------


def _check(
    dataset: Any, held_out: Any, every_epochs: Any, every_steps: Any, max_samples: Any, final_samples: Any, batch_size: Any,
    keep_best: bool,
) -> None:  # fmt: skip
    for name, data in (("dataset", dataset), ("held_out", held_out)):
        if isinstance(data, dict):
            raise ValueError(f"{name} is a {type(data).__name__} of {list(data)}: pass one split, {name}=data['test'].")
        if data is None and name == "held_out":
            continue
        if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
            raise ValueError(f"{name} is a {type(data).__name__} without length: pass a datasets.Dataset or a map-style one.")
        if len(data) == 0:
            raise ValueError(f"{name} is empty (0 rows): nothing to measure on.")
    if keep_best and held_out is None:
        raise ValueError(
            "held_out=None but keep_best=True, and the test set must not choose: pass held_out=... (train, held_out = "
            "hold_out(train, 500), or dataset.train_test_split), or keep_best=False."
        )
    if held_out is dataset:
        raise ValueError("held_out is the test set, which must not choose: split it off the training data, hold_out(train, 500).")
    if IS_CORRUPTED in (getattr(dataset, "column_names", None) or ()):
        wrong = int(read_column(dataset, IS_CORRUPTED).sum())
        if wrong:
            logger.warning("dataset has %d rows marked is_corrupted: double overfitting is measured on a CLEAN test set.", wrong)
    if isinstance(every_epochs, bool) or not isinstance(every_epochs, int | float) or not 0 < every_epochs < math.inf:
        raise ValueError(f"every_epochs={every_epochs!r} must be above 0: give 1, or a part of an epoch such as 0.5.")
    counts = {"every_steps": every_steps, "max_samples": max_samples, "final_samples": final_samples}
    for name, value in {**counts, "batch_size": batch_size}.items():
        if value is None and name in counts:
            continue
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name}={value!r} must be an integer of at least 1: give for instance 100.")


def _listed(attacks: Any) -> tuple[Any, ...]:
    """One name, several names or `Attack`s, or None."""
    return (attacks,) if isinstance(attacks, str) else tuple(attacks or ())


def _names(attacks: Sequence[Any], argument: str, threat: Mapping[str, Any], classes: int = 10) -> tuple[str, ...]:
    """The attacks' names, read as `evaluate_robustness` will: mistakes show before the training."""
    if not attacks:
        instead = ", or None for no final evaluation" if argument == "attacks_final" else ""
        raise ValueError(f"{argument} is empty: give for instance pgd-10{instead}.")
    return tuple(named.name for named in make_attacks(attacks, threat["eps"], threat["norm"], classes))


def _intervals(epoch: float, every: float) -> int:
    """How many intervals are over; epochs are sums of fractions, so a hair less than a whole one counts."""
    return math.floor(epoch / every + 1e-6)


def _size(data: Any, limit: int | None) -> int | None:
    return None if data is None else min(len(data), limit or len(data))
