"""A batch's walk through the house: perturb, trust, minimise, remember. Knows torch and the recipe, not the Trainer.

One optimizer step is walked as a whole: all its accumulation steps, on all processes. So a filter ranks the same samples,
and the shared perturbation averages the same signs, however the batch was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .data import InputSpace
from .ledger import SampleLedger
from .recipe import Progress, Recipe, View

Forward = Callable[[dict[str, Any]], Any]


@dataclass
class Batch:
    """One micro-batch: the model's inputs without labels and index, the given labels (B,), the positions (B,) or None."""

    inputs: dict[str, Any]
    targets: Tensor
    index: Tensor | None
    clean_scores: Tensor | None = None
    inner_weights: Tensor | None = None
    weights: Tensor | None = None


@dataclass
class Step:
    """One optimizer step: its micro-batches, and what was decided for all of them together."""

    batches: list[Batch]
    kept: Tensor | float | None = None


@dataclass
class Walk:
    """The state of a run (ledger, carried fractions) and the steps 3 to 9 of docs/architecture.md.

    gather: concatenates a tensor over the processes. total: sums a tensor over the processes. rank: this process's number.
    """

    recipe: Recipe
    classes: int
    device: torch.device
    ledger: SampleLedger | None = None
    space: InputSpace | None = None
    image_key: str | None = None
    processes: int = 1
    rank: int = 0
    seed: int = 0
    gather: Callable[[Tensor], Tensor] = lambda t: t
    total: Callable[[Tensor], Tensor] = lambda t: t
    gradient_scale: float = 1.0
    states: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)
    labels_checked: bool = True
    _checked: bool = False

    # ---- steps 3 and 4: trust early, perturb -------------------------------------------------------------------------

    def plan(
        self, bare: Forward, crafting: Callable[[], AbstractContextManager], peek: Forward, batches: list[Batch], progress: Progress
    ) -> Step:
        """Perturbs every micro-batch of the step in place and decides what can be decided before the training forward.

        bare: the forward of the unwrapped model, called within ``crafting()``. peek: a training forward without traces.
        """
        self._open_epoch(progress)
        if self.recipe.perturbation is not None:
            with crafting():
                self._perturb(bare, batches, progress)
        step = Step(batches)
        decided = [batch.weights for batch in batches if batch.weights is not None]
        known = decided if decided else self._known_weights(batches, self.recipe.outer_filter)
        if known is None and len(batches) > 1:
            # ranks need the scores of every micro-batch before the first backward: one more forward each, only here
            scores = [self._peek(peek, batch) for batch in batches]
            known = self._rank(scores, batches, progress, "outer")
        if known is not None:
            self._settle(step, known)
        return step

    def _perturb(self, bare: Forward, batches: list[Batch], progress: Progress) -> None:
        attack, space, key = self.recipe.perturbation, self.space, self.image_key
        assert attack is not None and space is not None and key is not None
        x = torch.cat([batch.inputs[key] for batch in batches]) if len(batches) > 1 else batches[0].inputs[key]
        if not self._checked:
            space.check(x)
            self._checked = True
        generator = torch.Generator(x.device)
        rank = 0 if attack.scope == "batch" else self.rank
        generator.manual_seed(hash((self.seed, progress.global_step, rank)) % 2**63)
        delta = attack.start(x, space, generator)
        for number in range(attack.steps):
            moved = x if number == 0 and not attack.random_start else attack.apply(x, delta, space)
            rows = moved.split([len(batch.targets) for batch in batches])
            found = [self._input_gradient(bare, batch, row) for batch, row in zip(batches, rows)]
            if number == 0:
                keep = self._trust_early([view for _, view in found], batches, progress)
            grads = torch.cat([grad for grad, _ in found])
            delta = attack.step(x, delta, grads, keep, space, self.total)
        rows = attack.apply(x, delta, space).split([len(batch.targets) for batch in batches])
        for batch, row in zip(batches, rows):
            batch.inputs[key] = row

    def _input_gradient(self, bare: Forward, batch: Batch, x: Tensor) -> tuple[Tensor, View]:
        """The loss's gradient with respect to the input alone (no weight gradients), and the forward it came from."""
        assert self.image_key is not None
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            view = self.view(bare({**batch.inputs, self.image_key: leaf}), batch)
            relabel = self.recipe.relabel if self.recipe.inner_filter else None
            targets = relabel(view) if relabel is not None else _given(view)
            loss = self.recipe.objective(view, targets).sum() * self.gradient_scale
            (grad,) = torch.autograd.grad(loss, leaf)
        return grad, View(view.logits.detach(), view.targets, view.index)

    def _trust_early(self, views: list[View], batches: list[Batch], progress: Progress) -> Tensor:
        scores = [self.recipe.score(view) for view in views]
        for batch, score in zip(batches, scores):
            batch.clean_scores = score
        recipe = self.recipe
        first = recipe.trust == "inner" and recipe.outer_filter  # this forward decides for the outer step too
        weights = self._known_weights(batches, recipe.inner_filter or first)
        if weights is None:
            weights = self._rank(scores, batches, progress, "inner")
        for batch, weight in zip(batches, weights):
            batch.inner_weights = weight if recipe.inner_filter else torch.ones_like(weight)
            batch.weights = weight if first else None
        return torch.cat([batch.inner_weights.mean(0) for batch in batches if batch.inner_weights is not None])

    # ---- step 7: trust -----------------------------------------------------------------------------------------------

    def _known_weights(self, batches: list[Batch], active: bool) -> list[Tensor] | None:
        """Weights that need no further score: nothing to filter, or the ledger has decided for this epoch."""
        selection = self.recipe.selection
        if selection is None or not active:
            return [torch.ones(1, len(b.targets), device=b.targets.device) for b in batches]
        if selection.memory != "none" and "keep" in self.states:
            assert self.ledger is not None
            return [self.ledger.keep[_positions(b)].float().unsqueeze(0) for b in batches]
        return None

    def _rank(self, scores: list[Tensor], batches: list[Batch], progress: Progress, place: str) -> list[Tensor]:
        """The rule's weights for this process's micro-batches, ranked over all micro-batches of all processes."""
        selection = self.recipe.selection
        assert selection is not None
        own = torch.cat(scores, 1)
        labels = torch.cat([batch.targets for batch in batches])
        everyone = self.gather(own.T.contiguous()).T.contiguous()
        if place not in self.states:
            self.states[place] = selection.new_state(self.classes, own.shape[0], own.device)
        weights = selection.weights(everyone, self.gather(labels), progress, self.states[place])
        mine = weights[:, self.rank * own.shape[1] : (self.rank + 1) * own.shape[1]]
        return list(mine.split([score.shape[1] for score in scores], 1))

    def _peek(self, forward: Forward, batch: Batch) -> Tensor:
        """The scores of a training forward that leaves no trace: no gradient, buffers and random state as before."""
        with torch.no_grad():
            return self.recipe.score(self.view(forward(batch.inputs), batch))

    def _settle(self, step: Step, weights: list[Tensor]) -> None:
        for batch, weight in zip(step.batches, weights):
            batch.weights = weight
        step.kept = self.total(torch.cat(weights, 1).sum(1))

    # ---- steps 6 to 9: forward (by the caller), trust, minimise, remember --------------------------------------------

    def loss(self, outputs: Any, batch: Batch, step: Step, progress: Progress) -> Tensor:
        """The micro-batch's share of the step's loss: sum over kept samples / kept samples of the whole step, scalar.

        Multiplied by the number of processes, because distributed training averages the gradients over them.
        """
        view = self.view(outputs, batch)
        scores = self.recipe.score(view)
        if batch.weights is None:
            self._settle(step, self._rank([scores], [batch], progress, "outer"))
        weights = batch.weights
        assert weights is not None and step.kept is not None
        relabel = self.recipe.relabel if self.recipe.outer_filter else None
        targets = relabel(view) if relabel is not None else _given(view)
        # a dropped sample's NaN or infinity must reach neither the loss nor, through 0 * NaN, the gradient
        trusted = view
        if self.recipe.selection is not None:
            logits = torch.where((weights > 0).unsqueeze(-1), view.logits, torch.zeros_like(view.logits))
            trusted = View(logits, view.targets, view.index, view.outputs)
        losses = self.recipe.objective(trusted, targets)
        kept = torch.where(weights > 0, losses * weights, torch.zeros_like(losses)).sum(1)
        loss = (kept / torch.as_tensor(step.kept, device=kept.device).clamp_min(1.0)).sum() * self.processes
        self._remember(view, scores, weights, batch, progress)
        return loss

    @torch.no_grad()
    def _remember(self, view: View, scores: Tensor, weights: Tensor, batch: Batch, progress: Progress) -> None:
        if not self.recipe.outer_filter and batch.inner_weights is not None:
            weights = batch.inner_weights
        if self.recipe.trust == "inner" and batch.clean_scores is not None:
            scores = batch.clean_scores
        score, weight = scores.mean(0), weights.mean(0)
        self._add("kept_fraction", weight.sum(), weight.numel())
        if self.ledger is None or batch.index is None:
            return
        row = torch.stack([score, weight, view.logits.mean(0).argmax(-1).float()], 1)
        row, index, labels = self.gather(row), self.gather(batch.index), self.gather(batch.targets)
        self.ledger.record(index, row[:, 0], row[:, 1], labels, row[:, 2], int(progress.epoch))
        if self.ledger.truth is not None:
            truth = self.ledger.truth[batch.index].float()
            self._add("kept_corrupted", (weight * truth).sum(), truth.sum())
            self._add("kept_clean", (weight * (1 - truth)).sum(), (1 - truth).sum())

    def _add(self, name: str, value: Tensor, count: Tensor | int) -> None:
        total = count.float() if isinstance(count, Tensor) else torch.full_like(value, float(count))
        pair = torch.stack([value.float(), total])
        self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def take_logs(self) -> dict[str, float]:
        """The running means since the last call, over all processes (one host sync)."""
        names = list(self.sums)
        if not names:
            return {}
        pairs = self.total(torch.stack([self.sums[name] for name in names])).cpu()
        self.sums.clear()
        return {name: float(value / count) for name, (value, count) in zip(names, pairs) if count > 0}

    # ---- the epoch's opening -----------------------------------------------------------------------------------------

    def _open_epoch(self, progress: Progress) -> None:
        """At the first step of an epoch, once there is something to remember: decide from memory whom to keep during it."""
        selection = self.recipe.selection
        epoch = int(progress.epoch)
        if selection is None or selection.memory == "none":
            return
        decided = self.states.get("keep")
        if decided is not None and int(decided["epoch"]) == epoch:
            return
        started = progress.epoch - epoch < 1e-9  # a ramp may end within an epoch; memory waits for the next one
        if decided is None and not (started and selection.remembers(progress)):
            return
        assert self.ledger is not None
        ledger = self.ledger
        mask = selection.keep_mask(
            ledger.memory(selection.memory), ledger.seen, ledger.label.long().clamp_min(0), self.classes, progress
        )
        ledger.columns["keep"] = mask
        self.states["keep"] = {"epoch": torch.tensor(epoch)}

    def view(self, outputs: Any, batch: Batch) -> View:
        """The forward pass with its labels. Raises ``ValueError`` where the model's output is no (B, C) logits."""
        logits = logits_of(outputs)
        if logits is None or logits.dim() != 2 or len(logits) != len(batch.targets):
            got = "none" if logits is None else str(tuple(logits.shape))
            raise ValueError(
                f"method '{self.recipe.name}' needs classification logits of shape ({len(batch.targets)}, C), got {got}: "
                "use a sequence or image classification model, or method=None."
            )
        unknown = self.classes != logits.shape[1]
        if unknown or (not self.labels_checked and batch.targets.device.type == "cpu"):
            # a module without a config tells its number of classes only here, past the collator's check of the labels;
            # on an accelerator, where looking costs a sync, only the first batch is looked at
            self.classes = logits.shape[1]
            low, high = int(batch.targets.min()), int(batch.targets.max())
            if low < 0 or high >= self.classes:
                bad = low if low < 0 else high
                raise ValueError(f"label {bad} in the batch, the model has {self.classes} outputs: repair the label or the model.")
        return View(logits.unsqueeze(0), batch.targets, batch.index, outputs)

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, as CPU tensors."""
        out = {f"state.{place}.{k}": v.cpu() for place, state in self.states.items() for k, v in state.items()}
        out["classes"] = torch.tensor(self.classes)
        return {**out, **(self.ledger.state() if self.ledger is not None else {})}

    def load_state(self, saved: dict[str, Tensor]) -> None:
        """Restores `state`."""
        for name, value in saved.items():
            kind, *rest = name.split(".")
            if kind == "classes":
                self.classes = int(value)
            if kind == "state":
                place, key = rest
                self.states.setdefault(place, {})[key] = value if place == "keep" else value.to(self.device)
        if self.ledger is not None:
            self.ledger.load_state(saved)


def _given(view: View) -> Tensor:
    return view.targets.expand(view.logits.shape[0], -1)


def _positions(batch: Batch) -> Tensor:
    assert batch.index is not None
    return batch.index


def logits_of(outputs: Any) -> Tensor | None:
    """The logits of a model's output: a tensor, a tuple's first entry, or a mapping's ``logits``."""
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, dict):
        return outputs.get("logits")
    if isinstance(outputs, tuple | list) and outputs:
        return outputs[0]
    return getattr(outputs, "logits", None)


@contextmanager
def untouched(module: nn.Module, mode: str) -> Iterator[None]:
    """Runs the body with the module in ``eval`` or ``train`` mode; modes and buffers are bit-identical afterwards."""
    training = [m for m in module.modules() if m.training]
    buffers = []
    try:
        if mode == "eval":
            for m in training:
                m.training = False
        else:
            buffers = [(b, b.detach().clone()) for b in module.buffers()]
        yield
    finally:
        for m in training:
            m.training = True
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
