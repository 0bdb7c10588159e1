"""An image classifier with a projector instead of its head, and what of it is saved."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from ..models.heads import head_of
from ..models.peers import PeerModel
from ..reporting.atomic_files import replacing

PROJECTOR_FILE = "projector.safetensors"


class ContrastiveModel(nn.Module):
    """An image classifier with a projector instead of its head: images -> embeddings (B, projection_dim).

    The projector is an MLP D -> ... -> D -> projection_dim with ReLU and without BatchNorm.

    Args:
        classifier: any image classifier that ends in an ``nn.Linear`` (`heads.head_of`), of whose input h (B, D) the projector
            makes the embedding. It is trained in place.
        projection_dim: size of the embedding, >= 1.
        projection_layers: linear layers of the projector, >= 1.

    Raises:
        ValueError: where there is no such layer, for several networks, and for models of texts.

    References:
        Chen et al. 2020 (SimCLR), sec. 2.1.
    """

    def __init__(self, classifier: nn.Module, projection_dim: int = 128, projection_layers: int = 2):
        super().__init__()
        if isinstance(classifier, PeerModel):
            raise ValueError(f"model has {len(classifier.peers)} networks, pre-training takes one: pass model.peers[0].")
        head = head_of(classifier)
        named = next((n for n in inspect.signature(classifier.forward).parameters if n not in ("args", "kwargs")), "pixel_values")
        self.main_input_name = str(getattr(classifier, "main_input_name", named))
        if self.main_input_name == "input_ids":
            raise ValueError(f"model={type(classifier).__name__} reads texts, SimCLR contrasts images: use an image classifier.")
        self.classifier = classifier
        self.head_name = next(name for name, module in classifier.named_modules() if module is head)
        width = head.in_features
        hidden = [m for _ in range(projection_layers - 1) for m in (nn.Linear(width, width), nn.ReLU())]
        self.projector = nn.Sequential(*hidden, nn.Linear(width, projection_dim)).to(head.weight.device)

    def __getattr__(self, name: str) -> Any:
        if name in ("config", "activation_checkpointing_enable", "gradient_checkpointing_enable"):
            return getattr(self.classifier, name)
        return super().__getattr__(name)

    @property
    def head(self) -> nn.Linear:
        """Returns the classifier's last layer, which pre-training leaves alone."""
        return self.classifier.get_submodule(self.head_name)  # type: ignore[return-value]

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Returns the embeddings (B, projection_dim).

        Args:
            pixel_values: (B, C, H, W), in the classifier's units.

        Raises:
            ValueError: where the last layer's input is not (B, D).
        """
        seen: list[Tensor] = []
        hook = lambda _, args, kwargs: seen.append(args[0] if args else kwargs["input"])  # noqa: E731
        handle = self.head.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            self.classifier(**{self.main_input_name: pixel_values})
        finally:
            handle.remove()
        if len(seen) != 1 or seen[0].dim() != 2 or len(seen[0]) != len(pixel_values):
            shapes = " and ".join(str(tuple(h.shape)) for h in seen) or "nothing"
            raise ValueError(
                f"the head '{self.head_name}' was given {shapes} for {len(pixel_values)} images, expected one (B, D): "
                "use a classifier that pools its tokens before a single last layer."
            )
        return self.projector(seen[0].to(next(self.projector.parameters()).dtype))

    @contextmanager
    def head_frozen(self) -> Iterator[None]:
        """Leaves the head without gradient inside: DDP and the optimizer leave it out."""
        before = [(p, p.requires_grad) for p in self.head.parameters()]
        try:
            for p, _ in before:
                p.requires_grad_(False)
            yield
        finally:
            for p, was in before:
                p.requires_grad_(was)


def save_projector(folder: str, model: ContrastiveModel) -> None:
    """Writes the projector's weights beside the classifier's.

    Args:
        folder: of the classifier.
        model: whose projector it is.
    """
    tensors = {name: tensor.contiguous() for name, tensor in model.projector.state_dict().items()}
    with replacing(os.path.join(folder, PROJECTOR_FILE)) as new:
        safetensors.torch.save_file(tensors, new, metadata={"format": "pt"})


def load_projector(folder: str, model: ContrastiveModel) -> None:
    """Restores what `save_projector` wrote.

    Args:
        folder: of the classifier.
        model: whose projector it becomes.

    Raises:
        ValueError: where it is missing, damaged or of other sizes.
    """
    path = os.path.join(folder, PROJECTOR_FILE)
    if not os.path.isfile(path):
        raise ValueError(f"checkpoint {folder!r} has no {PROJECTOR_FILE}: resume from one that a ContrastiveTrainer wrote.")
    try:
        weights = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path!r} is damaged ({error}): resume from another checkpoint.") from error
    sizes = lambda state: {name: tuple(tensor.shape) for name, tensor in state.items()}  # noqa: E731
    if sizes(weights) != sizes(model.projector.state_dict()):
        layers = [shape for name, shape in sizes(weights).items() if name.endswith("weight")]
        raise ValueError(
            f"checkpoint {folder!r} has a projector of layers {layers}, this run another: resume with the same projection_dim, "
            "projection_layers and model."
        )
    model.projector.load_state_dict(weights)
