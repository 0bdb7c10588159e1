"""A cap of the spectral norm of a model's weights while it trains: in any Trainer, a callback; in RobustTrainer, ``spectral_cap``.

Dissertation Algorithm 7, "use spectral normalization to truncate the largest singular value of last linear layer" after each step;
Crafting sec. 4.5 has it on every layer. The weights themselves are projected, so what is saved is a plain model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from transformers.pytorch_utils import Conv1D

from ..models.heads import heads_of
from ..models.sharding import own_part, reshard, scale_stepped_copy, stepped_apart, whole
from ..models.spectral import LAYERS, largest_singular_value

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_KINDS = (nn.Linear, Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


def capped_layers(model: nn.Module, layers: str = "last") -> dict[str, nn.Module]:
    """The layers that `SpectralCap` holds, by name: those that train, and of layers that share a weight the first.

    Args:
        model: The model.
        layers: ``last``, the head (`heads.head_of`; of a `PeerModel`, each network's), or ``all``: every ``nn.Linear``,
            convolution, transposed convolution and GPT-2's ``Conv1D``, LoRA's among them. Left as they are: frozen layers,
            embeddings, norms, recurrent layers, the packed projection of ``nn.MultiheadAttention``, and weights that a
            parametrization computes.

    Raises:
        ValueError: For other ``layers`` and for a model without a head.
    """
    return {name: layer for name, layer in _layers(model, layers).items() if layer.weight.requires_grad}


@torch.no_grad()
def spectral_norms(model: nn.Module, layers: str = "last") -> dict[str, float]:
    """The largest singular value of each layer's weights by its name, exactly (SVD); of frozen layers, too.

    Of a convolution it is that of the (out, in x kernel) matrix (Miyato et al. 2018); with stride 1 the norm of the convolution
    itself is at most sqrt(kh x kw) times it.

    Args:
        model: The model.
        layers: As in `capped_layers`, which tells what raises.
    """
    reshard(model)
    return {name: float(torch.linalg.matrix_norm(_matrix(layer), 2)) for name, layer in _layers(model, layers).items()}


class SpectralCap(TrainerCallback):
    """Keeps the spectral norm of weights W at k: after each optimizer step W <- W / max(sigma(W) / k, 1), so it only shrinks.

    ``Trainer(..., callbacks=[SpectralCap(1.0, layers="last")])``, or `project` after each step and `finish` after the last of a
    loop of one's own. k > 0;

    What the cap means: of a linear layer it is the Lipschitz constant; see `spectral_norms` for convolutions. A BatchNorm behind a
    layer undoes it, because it rescales. LoRA's two factors are capped each, not the sum of their product and the frozen weight.
    Weights of 16 bits meet k up to their own rounding.

    Args:
        layers: As in `capped_layers`, ``last`` or ``all``. In a step sigma comes from `spectral.largest_singular_value`, a
            thousandth too small at worst and without waiting for the device, which costs the more the wider the layers; when
            training ends the weights are projected once by SVD. No state: a resumed run equals an uninterrupted one, whose
            checkpoints meet k to that thousandth. A layer below k keeps every bit.

    Raises:
        ValueError: For settings out of range and, when training starts, for a model with no such layer that trains and for weights
            that FSDP1 or ZeRO-3 hold. FSDP2's parts are brought together for the norm, and each is shrunk where it lies.
    """

    def __init__(self, k: float, layers: str = "last"):
        if isinstance(k, bool) or not isinstance(k, int | float) or not (0 < k < math.inf):
            raise ValueError(f"spectral_cap={k!r} must be > 0, the largest spectral norm of a layer: give for instance 1.0.")
        if layers not in LAYERS:
            raise ValueError(f"spectral_layers={layers!r} is unknown: choose one of {', '.join(LAYERS)}.")
        self.k, self.layers = float(k), layers
        self._groups: list[list[nn.Module]] | None = None

    def open(self, model: nn.Module) -> None:
        """Finds the layers of the model that train; those of one shape are projected together."""
        _refuse_sharded(model)
        layers = capped_layers(model, self.layers)
        if not layers:
            frozen = list(_layers(model, self.layers))
            others = f"frozen ({', '.join(frozen[:3])})" if frozen else "none"
            raise ValueError(
                f"spectral_cap={self.k:g} has no effect, {type(model).__name__}'s layers to cap are {others}: unfreeze one, "
                "or drop spectral_cap."
            )
        groups: dict[Any, list[nn.Module]] = {}
        for layer in layers.values():
            matrix = _matrix(layer)
            alone = id(layer) if isinstance(layer.weight, DTensor) else None  # of a sharded model one whole weight at a time
            groups.setdefault((matrix.shape, matrix.dtype, matrix.device, alone), []).append(layer)
        self._groups = list(groups.values())

    @torch.no_grad()
    def project(self, model: nn.Module) -> None:
        """Projects the model's weights after a step. The host does not wait for the device.

        Args:
            model: The model.
        """
        reshard(model)
        if self._groups is None:
            self.open(model)
        assert self._groups is not None
        for group in self._groups:
            norms = largest_singular_value(torch.stack([_matrix(layer) for layer in group]))
            for layer, factor in zip(group, (norms / self.k).clamp_min(1.0).reciprocal()):
                _shrink(layer, factor)

    @torch.no_grad()
    def finish(self, model: nn.Module) -> None:
        """Projects the model's weights exactly, by SVD, after the last step.

        Args:
            model: The model.
        """
        reshard(model)
        for layer in capped_layers(model, self.layers).values():
            _shrink(layer, (torch.linalg.matrix_norm(_matrix(layer), 2) / self.k).clamp_min(1.0).reciprocal())
        self._groups = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Once what is frozen is frozen."""
        self.open(kwargs["model"])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Right after ``optimizer.step()``."""
        self.project(kwargs["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the best weights were loaded, where these were asked for."""
        self.finish(kwargs["model"])


def _layers(model: nn.Module, layers: str) -> dict[str, Any]:
    """The layers by name, frozen or not, each weight once."""
    if layers not in LAYERS:
        raise ValueError(f"spectral_layers={layers!r} is unknown: choose one of {', '.join(LAYERS)}.")
    names = {id(module): name for name, module in model.named_modules()}
    modules: Any = heads_of(model) if layers == "last" else _all(model)
    capped: dict[int, tuple[str, Any]] = {}
    for layer in modules:
        capped.setdefault(id(layer.weight), (names[id(layer)], layer))
    return dict(capped.values())


def _all(model: nn.Module) -> Iterator[nn.Module]:
    return (m for m in model.modules() if isinstance(m, _KINDS) and isinstance(m._parameters.get("weight"), nn.Parameter))


def _matrix(layer: Any) -> Tensor:
    """The weights as a matrix, (out, in) or, of convolutions, (out, in x kernel), in float32 or wider."""
    weight = whole(layer.weight.detach())
    matrix = (weight.transpose(0, 1) if isinstance(layer, _TRANSPOSED) else weight).flatten(1)
    return matrix.float() if matrix.dtype in (torch.float16, torch.bfloat16) else matrix


def _shrink(layer: Any, factor: Tensor) -> None:
    if stepped_apart(layer.weight):
        scale_stepped_copy(layer.weight, factor)
    weight = own_part(layer.weight)
    if weight.dtype == factor.dtype:
        weight.mul_(factor)
    else:  # 16 bits: rounded once, after the product
        weight.copy_(weight.to(factor.dtype) * factor)


def _refuse_sharded(model: nn.Module) -> None:
    """Raises ``ValueError`` where a weight is not whole, or the optimizer holds a copy of its own that it would write back."""
    now = AcceleratorState().distributed_type if is_initialized() else None
    plugin = getattr(AcceleratorState(), "fsdp_plugin", None) if now is not None else None
    old = now == DistributedType.FSDP and getattr(plugin, "fsdp_version", 1) != 2
    within_reach = all(stepped_apart(weight) for weight in model.parameters() if weight.requires_grad)
    kind = "FSDP1" if old else "DeepSpeed" if now == DistributedType.DEEPSPEED and not within_reach else None
    for weight in model.parameters():
        if hasattr(weight, "_is_flat_param") or hasattr(weight, "_fsdp_flattened"):
            kind = "FSDP1"
        if hasattr(weight, "ds_id"):
            kind = "DeepSpeed"
    if kind is not None:
        raise ValueError(
            f"spectral_cap needs whole weights, which {kind} shards or keeps copies of: use DDP, FSDP2, ZeRO 1 or 2, or drop it."
        )
