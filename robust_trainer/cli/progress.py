"""What a training shows while it runs."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

from ..reporting.console import listened_to
from ..reporting.results import CURVES, percent
from ..reporting.safe_text import plain


class EpochBar(TrainerCallback):
    """A progress bar over the steps, and one line per epoch where ``lines`` is set; on the main process only."""

    def __init__(self, name: str, lines: bool = True, bar: bool = True):
        self.name, self.lines, self.shown = plain(name, 60), lines, bar
        self.row: dict[str, float] = {}
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Opens the bar."""
        if state.is_world_process_zero and self.shown:
            self.bar = tqdm(total=state.max_steps, desc=self.name, dynamic_ncols=True, unit="step")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Moves the bar."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Collects the figures of the epoch."""
        figures = {name: logs[key] for name, key in CURVES.items() if key in (logs or {})}
        if figures:
            self.row.update(figures, epoch=logs.get("epoch", state.epoch))
        if self.bar is not None and "poison_accuracy" in self.row:
            self.bar.set_postfix(clean=percent(self.row["clean_accuracy"]), poison=percent(self.row["poison_accuracy"]))

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes the line of the epoch before."""
        self._flush(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes the last line and closes the bar."""
        self._flush(state)
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _flush(self, state: Any) -> None:
        row, self.row = self.row, {}
        if not (row and self.lines and state.is_world_process_zero):
            return
        shown = [f"epoch {row['epoch']:g}"] + ([f"loss {row['loss']:.4g}"] if "loss" in row else [])
        short = {"clean_accuracy": "clean", "poison_accuracy": "poison", "kept_fraction": "kept"}
        short |= {"kept_clean": "kept of clean", "kept_corrupted": "kept of corrupted"}
        shown += [f"{label} {percent(row[name])}" for name, label in short.items() if name in row]
        with listened_to():
            tqdm.write("  ".join(shown), file=sys.stdout)
            sys.stdout.flush()
