"""What a model's forward takes, and the features in front of its last linear layer, read while it runs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..data.audio import lengths
from .peers import PeerModel


@dataclass
class Layers:
    """What a forward ran through: the last `Linear` of each width with its input and output, the last convolution and after.

    ``hidden``: what a transformers model's body returned for each token or patch, (B, T, D).
    ``after``: the leaf modules that followed the convolution as long as they kept its channels, with the last one's output.
    """

    linear: dict[int, tuple[nn.Linear, Tensor, Tensor]] = field(default_factory=dict)
    conv: nn.Module | None = None
    channels: Tensor | None = None
    after: list[nn.Module] = field(default_factory=list)
    hidden: Tensor | None = None
    _open: bool = False

    def see(self, module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> None:
        """The forward hook: keeps the layer and its input."""
        if isinstance(module, nn.Linear):
            self.linear[module.out_features] = (module, inputs[0] if inputs else named["input"], output)
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            self.conv, self.channels, self.after, self._open = module, output, [], True
        elif self._open and self.channels is not None:
            was = self.channels
            kept = isinstance(output, Tensor) and output.dim() == was.dim() and output.shape[:2] == was.shape[:2]
            self._open = kept
            if kept:
                self.channels = output
                self.after.append(module)

    def keep_hidden(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """The forward hook of a body: keeps its tokens."""
        states = output.get("last_hidden_state") if isinstance(output, Mapping) else None
        self.hidden = states if isinstance(states, Tensor) and states.dim() == 3 else None


@contextmanager
def watched(model: nn.Module) -> Iterator[Layers]:
    """Within it a forward of the model (of a `PeerModel`: of its first network) fills the `Layers`; its hooks are then removed.

    Args:
        model: The model.
    """
    bare = model.peers[0] if isinstance(model, PeerModel) else model
    layers = Layers()
    # the leaves, and layers that have others inside (LoRA's are no Linear themselves, but hold one)
    leaves = [m for m in bare.modules() if isinstance(m, nn.Linear) or next(m.children(), None) is None]
    handles = [m.register_forward_hook(layers.see, with_kwargs=True) for m in leaves]
    body = getattr(bare, "base_model", bare)
    if isinstance(body, nn.Module) and body is not bare:
        handles.append(body.register_forward_hook(layers.keep_hidden))
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def last_linear(layers: Layers, outputs: Any, logits: Tensor) -> tuple[nn.Linear, Tensor]:
    """Returns the last `Linear` that ran and is as wide as the logits (B, C), and its input, (B, D) float32.

    Where it ran on every token, (B, T, D), the token whose output the logits are; more axes are flattened.

    Args:
        layers: Filled by `watched`.
        outputs: What the model returned.
        logits: (B, C).


    Raises:
        ValueError: Where there is none.
    """
    if logits.shape[1] not in layers.linear:
        raise ValueError(f"no linear layer of {logits.shape[1]} outputs ran in the model: give one whose last layer is linear.")
    module, inputs, output = layers.linear[logits.shape[1]]
    if isinstance(outputs, dict) and outputs.get("peer_logits") is not None:
        logits = outputs["peer_logits"][:, 0]
    if len(inputs) != len(logits):
        got = f"{tuple(inputs.shape)} for {len(logits)} samples"
        raise ValueError(
            f"the last linear layer's input is {got}, expected one row each: use a model whose head sees each sample once."
        )
    if inputs.dim() == 3:
        away = (output.float() - logits.float().unsqueeze(1)).abs().amax(-1).flip(1)
        nearest, token = away.min(1)
        if bool((nearest > 1e-2 * (1.0 + logits.float().abs().amax(1))).any()):
            raise ValueError("the last linear layer runs on every token and no token's output is the logits: features are unknown.")
        inputs = inputs.flip(1)[torch.arange(len(inputs), device=inputs.device), token]
    return module, inputs.detach().flatten(1).float()


def forward_names(model: nn.Module) -> set[str] | None:
    """Returns what the model's forward names; None where it names nothing and takes anything.

    Args:
        model: of a `PeerModel` the first network counts, of PEFT's the one that it wraps.
    """
    bare = model.peers[0] if isinstance(model, PeerModel) else model
    if hasattr(bare, "get_base_model"):  # PEFT's forward takes anything
        bare = bare.get_base_model()  # type: ignore[operator]
    parameters = inspect.signature(bare.forward).parameters.values()
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return None if not names and any(p.kind is p.VAR_KEYWORD for p in parameters) else names


def token_mask(model: nn.Module, hidden: Tensor, inputs: Mapping[str, Any]) -> Any:
    """Returns which tokens of a body count, (B, T'), None for all: of sounds those that are of no padding.

    Args:
        model: of a `PeerModel` the first network counts.
        hidden: (B, T', D).
        inputs: of the model; waveforms (B, T) have more samples than the body tokens, and come with a mask or without.
    """
    bare: Any = model.peers[0] if isinstance(model, PeerModel) else model
    mask, waves = inputs.get("attention_mask"), inputs.get("input_values")
    if isinstance(mask, Tensor) and mask.shape == hidden.shape[:2]:
        return mask
    frames = getattr(bare, "_get_feature_vector_attention_mask", None)
    if frames is None or not isinstance(waves, Tensor) or waves.dim() != 2:
        return mask
    places = torch.arange(waves.shape[1], device=waves.device)
    try:
        return frames(hidden.shape[1], (places < lengths(waves, mask).unsqueeze(1)).long())
    except (RuntimeError, TypeError, ValueError, IndexError):  # a model of its own kind
        return mask


def mean_of_tokens(hidden: Tensor, mask: Any) -> Tensor:
    """Returns the mean over the tokens, (B, D).

    Args:
        hidden: (B, T, D).
        mask: (B, T), which tokens count; where it does not fit, all do.
    """
    if not isinstance(mask, Tensor) or mask.shape != hidden.shape[:2]:
        return hidden.mean(1)
    weight = mask.to(hidden).unsqueeze(-1)
    return (hidden * weight).sum(1) / weight.sum(1).clamp_min(1.0)
