"""The model under attack: [0, 1] pixels in, float32 logits out, and no trace left in the model."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from ..data.images import InputSpace, input_space
from ..models.modes import eval_mode
from ..models.outputs import image_logits
from ..models.sharding import is_sharded

_LOW = (torch.float16, torch.bfloat16)


class Target:
    """A `Forward`: images (B, C, H, W) float32 in [0, 1] -> logits (B, K) float32, differentiable with respect to the images.

    Use it as a context: within it the model is in eval mode. Gradients are float32 whatever the model's dtype: a model with
    float16 or bfloat16 parameters is differentiated in a float32 copy, and autocast, also one that accelerate wrapped around the
    model, is off. A float32 or float64 model is not copied.

    Guarantee: afterwards, also after an exception, modes and buffers are bit-identical; parameters' ``grad`` and
    ``requires_grad`` are never written. Predictions are the model's own: where the copy predicts another class, the logits'
    values are the model's and only their gradient the copy's. So an attack that believes it succeeded did so on the model as it
    is.

    Args:
        model: any transformers image classifier, `PeerModel` (its mean logits) or torch module that returns logits, a tuple or a
        mapping. processing_class: the image processor, which tells the normalisation. image_mean: the normalisation where there
        is no processor, with ``image_std``. image_std: see ``image_mean``.

    Raises:
        ValueError: in one line, where the normalisation is unknown, the model takes token ids, or the output is no logits.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        processing_class: Any = None,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
    ):
        space = input_space(processing_class, image_mean, image_std)
        if space is None:
            raise ValueError(
                "the normalisation of the images is unknown: pass processing_class (the image processor), or image_mean and "
                "image_std; image_mean=[0.0], image_std=[1.0] for a model that takes [0, 1] pixels."
            )
        self.space: InputSpace = space
        self.model = extract_model_from_parallel(model)
        if is_sharded(self.model):
            raise ValueError("the model is sharded over processes, attacks take a whole one: save it, and open it in one process.")
        takes = inspect.signature(type(self.model).forward).parameters
        name = getattr(self.model, "main_input_name", None) or "pixel_values"
        if name == "input_ids" and name in takes and "pixel_values" not in takes:
            raise ValueError(
                f"{type(self.model).__name__} takes token ids, and pixels are attacked here: give an image model; for robust text "
                "classifiers train on perturbed inputs_embeds."
            )
        # PreTrainedModel calls its main input input_ids unless a class says otherwise
        self.input_name: str = "pixel_values" if name == "input_ids" else name
        self._by_name = self.input_name in takes
        tensors = [*self.model.parameters(), *self.model.buffers()]
        floats = [t for t in tensors if t.is_floating_point()]
        self.device = tensors[0].device if tensors else torch.device("cpu")
        self.dtype = floats[0].dtype if floats else torch.float32
        self._low = any(t.dtype in _LOW for t in floats)
        self._stack: ExitStack | None = None
        self._smooth: Callable[..., Any] | None = None

    def __enter__(self) -> Target:
        self._stack = ExitStack()
        buffers = [(b, b.detach().clone()) for b in self.model.buffers()]
        self._stack.callback(_put_back, buffers)
        self._stack.enter_context(eval_mode(self.model))
        if self._low:
            smooth = copy.deepcopy(self.model)
            for name in ("forward", "_original_forward"):  # what accelerate wrapped around the first model would call that one
                smooth.__dict__.pop(name, None)
            self._smooth = smooth.float().requires_grad_(False)
        elif torch.is_autocast_enabled(self.device.type):
            self._smooth = self.model
        else:
            self._smooth = self.model.__dict__.get("_original_forward")  # without accelerate's autocast
        return self

    def __exit__(self, *error: Any) -> None:
        stack, self._stack, self._smooth = self._stack, None, None
        if stack is not None:
            stack.close()

    def pixels(self, inputs: Tensor) -> Tensor:
        """Returns the images (B, C, H, W) float32 in [0, 1] of a batch of model inputs.

        Raises:
            ValueError: where they leave [0, 1].
        """
        inputs = inputs.to(self.device, torch.float32)
        self.space.check(inputs)
        return self.space.to_pixels(inputs).clamp(0, 1)

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the logits (B, K) float32 of images (B, C, H, W) in [0, 1], differentiable with respect to them."""
        if self._stack is None:
            raise RuntimeError("the target is closed: use it as `with Target(model, ...) as forward`.")
        with torch.autocast(self.device.type, enabled=False):
            smooth = self._logits(self._smooth or self.model, x, torch.float32 if self._low else self.dtype)
        if self._smooth is None:
            return smooth
        own = self.judge(x)
        differs = (smooth.detach().argmax(1) != own.argmax(1)).unsqueeze(1)
        return torch.where(differs, smooth + (own - smooth).detach(), smooth)

    @torch.no_grad()
    def judge(self, x: Tensor) -> Tensor:
        """Returns the logits (B, K) float32 of the model exactly as it is, dtype and autocast included, without a gradient."""
        return self._logits(self.model, x, self.dtype)

    def right(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns whether the model as it is predicts y (B,): a mask (B,); logits that are NaN are wrong."""
        logits = self.judge(x)
        return (logits.argmax(1) == y) & ~logits.isnan().any(1)

    def _logits(self, call: Callable[..., Any], x: Tensor, dtype: torch.dtype) -> Tensor:
        inputs = self.space.from_pixels(x).to(dtype)
        return image_logits(call(**{self.input_name: inputs}) if self._by_name else call(inputs), self.model, len(x))


def _put_back(buffers: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
