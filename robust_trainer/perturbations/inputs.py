"""Where a perturbation enters a model: in an image model's pixels, or in what a text model's word embeddings give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..data.images import InputSpace
from ..step.batch import Batch
from .norms import Ball, Space

Forward = Callable[[dict[str, Any]], Any]


class InputAdapter(Protocol):
    """What the inner maximisation moves, x (B, ...): read from the micro-batches, and put into a forward in their place."""

    def join(self, batches: Sequence[Batch], norm: str, second: Tensor | None = None) -> tuple[Tensor, Space]:
        """x of all micro-batches, one row per sample, and the space it lives in.

        second: for norm ``hybrid`` the samples (B,) that are perturbed in the l_2 ball.
        """
        ...

    def split(self, x: Tensor, batches: Sequence[Batch]) -> list[Tensor]:
        """The rows of each micro-batch."""
        ...

    def forward(self, forward: Forward, inputs: dict[str, Any], x: Tensor) -> Any:
        """The model's outputs at x; differentiable with respect to x and to the weights."""
        ...


@dataclass(frozen=True)
class PixelAdapter:
    """Pixels: the input called ``key``, in the model's normalised units."""

    key: str
    space: InputSpace

    def join(self, batches: Sequence[Batch], norm: str, second: Tensor | None = None) -> tuple[Tensor, InputSpace]:
        x = [batch.inputs[self.key] for batch in batches]
        return (torch.cat(x) if len(x) > 1 else x[0]), self.space

    def split(self, x: Tensor, batches: Sequence[Batch]) -> list[Tensor]:
        return list(x.split([len(batch.targets) for batch in batches]))

    def forward(self, forward: Forward, inputs: dict[str, Any], x: Tensor) -> Any:
        return forward({**inputs, self.key: x})


@dataclass(frozen=True)
class EmbeddingSpace:
    """Word embeddings (B, L, D). eps counts in ``unit``s: the mean 2-norm of the vocabulary's embeddings, over sqrt(D) for l_inf.

    So eps = 1 is as large as a word, in both norms. Each token has a ball of its own (Miyato et al. 2017, virtual adversarial
    training on text, has one for the sentence); padding, where ``mask`` (B, L, 1) is 0, is not moved. x is what was added so far.
    unit: a number, or (B, 1, 1) where the norm differs between the samples.
    """

    unit: float | Tensor
    mask: Tensor

    def check(self, x: Tensor) -> None:
        """Embeddings have no range."""

    def ball(self, norm: str, eps: float) -> Ball:
        return Ball(norm, eps, per_token=True)

    def to_pixel_gradient(self, grad: Tensor) -> Tensor:
        return grad * self.unit

    def clip(self, x: Tensor, delta: Tensor) -> Tensor:
        return delta * self.mask

    def add(self, x: Tensor, delta: Tensor) -> Tensor:
        return x + (delta * self.unit * self.mask).to(x.dtype)


@dataclass(frozen=True)
class EmbeddingAdapter:
    """The outputs of the word embeddings; the model still sees the token ids, so that padding is found where it looks for it.

    embeddings: the embedding module of the model, or of each of its peers.
    """

    embeddings: tuple[nn.Module, ...]
    unit: float
    width: int

    @classmethod
    def of(cls, models: Sequence[Any]) -> EmbeddingAdapter:
        """The front of transformers models. Raises ``ValueError`` for one that embeds for a decoder too, or has no embeddings."""
        found = []
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
            found.append(module)
        with torch.no_grad():
            unit = sum(float(module.weight.float().norm(dim=1).mean()) for module in found) / len(found)
        return cls(tuple(found), unit, found[0].weight.shape[1])

    def join(self, batches: Sequence[Batch], norm: str, second: Tensor | None = None) -> tuple[Tensor, EmbeddingSpace]:
        shapes = [batch.inputs["input_ids"].shape for batch in batches]
        longest = max(shape[1] for shape in shapes)
        device = batches[0].inputs["input_ids"].device
        masks = []
        for batch, shape in zip(batches, shapes):
            mask = batch.inputs.get("attention_mask")
            full = torch.ones(shape, device=device) if mask is None or mask.shape != shape else mask.float()
            masks.append(nn.functional.pad(full, (0, longest - shape[1])))
        mask = torch.cat(masks)
        entry = self.unit / self.width**0.5
        unit: float | Tensor = self.unit if norm == "l2" else entry
        if norm == "hybrid":
            assert second is not None
            unit = torch.full(second.shape, entry, device=device).masked_fill(second, self.unit).view(-1, 1, 1)
        return torch.zeros(*mask.shape, self.width, device=device), EmbeddingSpace(unit, mask.unsqueeze(-1))

    def split(self, x: Tensor, batches: Sequence[Batch]) -> list[Tensor]:
        rows = x.split([len(batch.targets) for batch in batches])
        return [row[:, : batch.inputs["input_ids"].shape[1]] for row, batch in zip(rows, batches)]

    def forward(self, forward: Forward, inputs: dict[str, Any], x: Tensor) -> Any:
        with self._moved(x):
            return forward(inputs)

    @contextmanager
    def _moved(self, x: Tensor) -> Iterator[None]:
        def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return output + x.to(output.dtype)

        with ExitStack() as stack:
            for module in self.embeddings:
                stack.callback(module.register_forward_hook(add).remove)
            yield
