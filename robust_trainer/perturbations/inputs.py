"""Where a perturbation enters a model: in an image model's pixels, or in what a text model's word embeddings give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..data.batch_rows import rows_of
from ..data.images import InputSpace
from ..models.sharding import whole
from .norms import Ball, find_norm

Forward = Callable[[dict[str, Any]], Any]


class MicroBatch(Protocol):
    """What an adapter reads of a micro-batch: the model's inputs, and the targets (B, ...) that tell its rows."""

    @property
    def inputs(self) -> dict[str, Any]:
        """The model's inputs by name."""
        ...

    @property
    def targets(self) -> Tensor:
        """The targets, (B, ...)."""
        ...


class Space(Protocol):
    """The units of eps, and the valid range. x: in the model's units; delta and pixel gradients: in the units of eps."""

    def check(self, x: Tensor) -> None:
        """Raises ``ValueError`` where x leaves the valid range."""
        ...

    def ball(self, norm: str, eps: float) -> Ball:
        """Returns the ball that delta stays in."""
        ...

    def to_pixel_gradient(self, grad: Tensor) -> Tensor:
        """Returns the gradient with respect to delta, from the one with respect to x."""
        ...

    def clip(self, x: Tensor, delta: Tensor) -> Tensor:
        """Returns ``delta``, shortened so that x + delta stays in the valid range."""
        ...

    def add(self, x: Tensor, delta: Tensor) -> Tensor:
        """Returns x + delta in the model's units and x's dtype, in the valid range; exactly x where delta is 0."""
        ...


class InputAdapter(Protocol):
    """What the inner maximisation moves, x (B, ...): read from the micro-batches, and put into a forward in their place."""

    def join(self, batches: Sequence[MicroBatch], norm: str, in_l2: Tensor | None = None) -> tuple[Tensor, Space]:
        """Returns x of all micro-batches, one row per sample, and the space it lives in.

        Args:
            batches: the micro-batches of a step.
            norm: a name of `norms.NORMS`, or ``hybrid``.
            in_l2: for norm ``hybrid`` the samples (B,) that are perturbed in the l_2 ball.
        """
        ...

    def split(self, x: Tensor, batches: Sequence[MicroBatch]) -> list[Tensor]:
        """Returns the rows of each micro-batch."""
        ...

    def forward(self, forward: Forward, inputs: dict[str, Any], x: Tensor) -> Any:
        """Returns the model's outputs at x; differentiable with respect to x and to the weights."""
        ...


@dataclass(frozen=True)
class PixelAdapter:
    """Pixels, in the model's normalised units.

    Args:
        key: the name of the model's image input.
        space: the normalisation.
    """

    key: str
    space: InputSpace

    def join(self, batches: Sequence[MicroBatch], norm: str, in_l2: Tensor | None = None) -> tuple[Tensor, InputSpace]:
        """As `InputAdapter.join`."""
        x = [batch.inputs[self.key] for batch in batches]
        return (torch.cat(x) if len(x) > 1 else x[0]), self.space

    def split(self, x: Tensor, batches: Sequence[MicroBatch]) -> list[Tensor]:
        """As `InputAdapter.split`."""
        return list(x.split([len(batch.targets) for batch in batches]))

    def forward(self, forward: Forward, inputs: dict[str, Any], x: Tensor) -> Any:
        """As `InputAdapter.forward`; of several examples a sample the other inputs are those of each."""
        size = len(inputs[self.key])
        if len(x) != size:
            inputs = rows_of(inputs, torch.arange(size, device=x.device).repeat(len(x) // size), size)
        return forward({**inputs, self.key: x})


@dataclass(frozen=True)
class EmbeddingSpace:
    """Word embeddings (B, L, D); x is what was added to them so far, and eps counts in ``unit``s.

    A unit is the norm of a vector with equal entries and the mean 2-norm m of the vocabulary's embeddings: m (l2), m / sqrt(D)
    (linf), m sqrt(D) (l1). So eps = 1 is as large as a word, in every norm. Each token has a ball of its own; padding is not moved.

    Args:
        unit: a number, or (B, 1, 1) where the norm differs between the samples.
        mask: (B, L, 1), 1 for tokens and 0 for padding.

    References:
        Miyato, Dai and Goodfellow 2017, "Adversarial training methods for semi-supervised text classification"; they have
        one ball for the sentence.
    """

    unit: float | Tensor
    mask: Tensor

    def check(self, x: Tensor) -> None:
        """Embeddings have no range: raises nothing."""

    def ball(self, norm: str, eps: float) -> Ball:
        """As `Space.ball`: one for each token."""
        return Ball(norm, eps, per_token=True)

    def to_pixel_gradient(self, grad: Tensor) -> Tensor:
        """As `Space.to_pixel_gradient`."""
        return grad * self.unit

    def clip(self, x: Tensor, delta: Tensor) -> Tensor:
        """As `Space.clip`: 0 for padding."""
        return delta * self.mask

    def add(self, x: Tensor, delta: Tensor) -> Tensor:
        """As `Space.add`."""
        return x + (delta * self.unit * self.mask).to(x.dtype)


@dataclass(frozen=True)
class EmbeddingAdapter:
    """The outputs of the word embeddings; the model still sees the token ids, so that padding is found where it looks for it.

    Args:
        embeddings: the embedding module of the model, or of each of its peers.
        unit: the mean 2-norm of the vocabulary's embeddings.
        width: the number of entries D of an embedding.
    """

    embeddings: tuple[nn.Module, ...]
    unit: float
    width: int

    @classmethod
    def of(cls, models: Sequence[Any]) -> EmbeddingAdapter:
        """Returns the adapter of transformers models.

        Raises:
            ValueError: for a model that embeds for a decoder too, or has no word embeddings.
        """
        modules = []
        for model in models:
            config = getattr(model, "config", None)
            if getattr(config, "is_encoder_decoder", False):
                raise ValueError(
                    f"{type(model).__name__} embeds for an encoder and a decoder, an attack needs one of them: "
                    "use an encoder or a decoder alone, or a method without an attack (prl, spl, nce-rce)."
                )
            try:
                module = model.get_input_embeddings()
            except (AttributeError, NotImplementedError):
                module = None
            if not isinstance(getattr(module, "weight", None), Tensor) or module.weight.dim() != 2:
                raise ValueError(
                    f"{type(model).__name__} has no word embeddings that an attack could move: "
                    "use a transformers text model, or a method without an attack (prl, spl, nce-rce)."
                )
            modules.append(module)
        with torch.no_grad():
            unit = sum(float(whole(module.weight.float().norm(dim=1)).mean()) for module in modules) / len(modules)
        return cls(tuple(modules), unit, modules[0].weight.shape[1])

    def join(self, batches: Sequence[MicroBatch], norm: str, in_l2: Tensor | None = None) -> tuple[Tensor, EmbeddingSpace]:
        """As `InputAdapter.join`."""
        shapes = [batch.inputs["input_ids"].shape for batch in batches]
        if len(shapes[0]) != 2:
            raise ValueError(
                f"input_ids have shape {tuple(shapes[0])}, an attack moves texts of shape (B, T), one a sample: use a method "
                "without an attack (prl, spl, nce-rce)."
            )
        longest = max(shape[1] for shape in shapes)
        device = batches[0].inputs["input_ids"].device
        masks = []
        for batch, shape in zip(batches, shapes):
            mask = batch.inputs.get("attention_mask")
            full = torch.ones(shape, device=device) if mask is None or mask.shape != shape else mask.float()
            masks.append(nn.functional.pad(full, (0, longest - shape[1])))
        mask = torch.cat(masks)
        if norm == "hybrid":
            assert in_l2 is not None
            unit: float | Tensor = torch.where(in_l2, self._unit("l2"), self._unit("linf")).view(-1, 1, 1)
        else:
            unit = self._unit(norm)
        return torch.zeros(*mask.shape, self.width, device=device), EmbeddingSpace(unit, mask.unsqueeze(-1))

    def split(self, x: Tensor, batches: Sequence[MicroBatch]) -> list[Tensor]:
        """As `InputAdapter.split`."""
        rows = x.split([len(batch.targets) for batch in batches])
        return [row[:, : batch.inputs["input_ids"].shape[1]] for row, batch in zip(rows, batches)]

    def forward(self, forward: Forward, inputs: dict[str, Any], x: Tensor) -> Any:
        """As `InputAdapter.forward`."""
        with self._moved(x):
            return forward(inputs)

    def _unit(self, norm: str) -> float:
        """The norm of a vector of ``width`` equal entries whose 2-norm is that of a mean word."""
        return self.unit / (self.width**0.5 / find_norm(norm).of_ones(self.width))

    @contextmanager
    def _moved(self, x: Tensor) -> Iterator[None]:
        def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return output + x.to(output.dtype)

        with ExitStack() as stack:
            for module in self.embeddings:
                stack.callback(module.register_forward_hook(add).remove)
            yield
