"""The Trainer's hooks for the training data: the index travels with the batch, and two streams are mixed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets

from .data.indexing import IndexCollator, Indexed
from .data.streams import StreamSampler
from .switch_hooks import SwitchHooks
from .types import Progress


class DataHooks(SwitchHooks):
    """A Trainer whose training batches carry the positions of their samples; base class of `RobustTrainer`."""

    _training: bool

    def _progress(self) -> Progress:
        """Where training stands."""
        raise NotImplementedError

    def get_train_dataloader(self) -> Any:
        data, walk = self.train_dataset, self._walk
        if not self._training or walk is None or walk.ledger is None or data is None:
            return super().get_train_dataloader()
        semi = walk.recipe.semi_supervised

        def sampler(rows: Any) -> Any:
            if semi is None or walk.recipe.selection is None:
                return self._get_train_sampler(rows)
            now = lambda: (int(self._progress().epoch), walk.split())  # noqa: E731
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            return StreamSampler(len(rows), now, semi.labelled_share, seed)

        return self._train_loader(sampler, self._train_batch_size, "Training", training=True)

    def _train_loader(self, sampler: Callable[[Any], Any], batch_size: int, told: str, training: bool) -> Any:
        """A loader of the training set whose batches carry the positions of their samples."""
        data, walk = self.train_dataset, self._walk
        assert walk is not None
        if isinstance(data, datasets.Dataset):
            data = self._remove_unused_columns(data, description="training")
            collate = self.data_collator
        else:
            collate = self._get_collator_with_removed_columns(self.data_collator, description="training")
        users = self.data_collator
        names = [*self.label_names, "labels", "label"]
        main = getattr(self.accelerator.unwrap_model(self.model), "main_input_name", "pixel_values")
        self.data_collator = IndexCollator(collate, list(dict.fromkeys(names)), walk.classes or None, main, walk.problem)
        dropping, self.args.dataloader_drop_last = self.args.dataloader_drop_last, self.args.dataloader_drop_last and training
        try:
            return self._get_dataloader(
                dataset=Indexed(data),
                description=told,
                batch_size=batch_size,
                sampler_fn=lambda _: sampler(data),
                is_training=training,
            )
        finally:
            self.data_collator, self.args.dataloader_drop_last = users, dropping
