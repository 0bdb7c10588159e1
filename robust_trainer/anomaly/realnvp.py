"""RealNVP, a density that normal rows fit and anomalies do not (Dissertation chapter 3); with a Lipschitz cap, RobustRealNVP's."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from ..models.spectral import cap_factor, power_iteration
from .output import AnomalyOutput

#: The weights of a layer of all couplings, and the factors that cap them.
Layers = list[tuple[Tensor, Tensor | None]]


class RealNVPConfig(PreTrainedConfig):
    """Settings of `RealNVPModel`.

    Args:
        features: Columns d >= 2 of a row.
        couplings: Affine couplings, in pairs that between them move every column.
        hidden_size: Units of the two hidden layers of s and of t.
        lipschitz: None, or the k > 0 at which the spectral norm of every linear layer of s and t is capped.
    """

    model_type = "robust-realnvp"

    def __init__(self, features: int = 2, couplings: int = 6, hidden_size: int = 256, lipschitz: float | None = None, **kwargs):
        self.features, self.couplings, self.hidden_size, self.lipschitz = features, couplings, hidden_size, lipschitz
        super().__init__(**kwargs)


class RealNVPModel(PreTrainedModel):
    """L affine couplings from rows x to z ~ N(0, I); in each, one half of the columns moves the other one (Dissertation eq. 3.2).

    ``y_free = x_free * exp(s(x_held)) + t(x_held)``; s and t are networks with two hidden layers and LeakyReLU(0.01), s with a tanh
    at the end. The couplings hold the first floor(d / 2) columns and the others by turns, so that every column is free in every
    second one, for odd d too. ``forward`` returns an `AnomalyOutput`: ``losses`` and ``scores`` are the negative log-likelihood in
    nats (eq. 3.1).

    The weights of s and t of all couplings are stacked, (L, 2, in, out), so that a cap costs three power iterations a step and not
    6 L. For odd d those of the couplings that hold (or free) fewer columns have rows (or columns) of zeros at the end.
    """

    config_class = RealNVPConfig
    base_model_prefix = "realnvp"
    main_input_name = "features"
    sample_losses = True

    def __init__(self, config: RealNVPConfig):
        super().__init__(config)
        d, h, couplings = config.features, config.hidden_size, config.couplings
        if d < 2 or couplings < 2 or couplings % 2:
            raise ValueError(f"features={d}, couplings={couplings}: a pair of couplings needs two columns, and they come in pairs.")
        self.middle, wide = d // 2, d - d // 2
        sizes = ((wide, h), (h, h), (h, wide))
        self.weights = nn.ParameterList(torch.empty(couplings, 2, *size) for size in sizes)
        self.biases = nn.ParameterList(torch.empty(couplings, 2, 1, size[1]) for size in sizes)
        for number, size in enumerate(sizes):
            if config.lipschitz is not None:
                self.register_buffer(f"direction{number}", torch.empty(couplings, 2, size[1]))
        self.reset_parameters()
        self.post_init()

    def reset_parameters(self) -> None:
        """Sets torch's own initialisation of linear layers: uniform in +- 1 / sqrt(in)."""
        with torch.no_grad():
            for weight, bias in zip(self.weights, self.biases):
                bound = 1.0 / math.sqrt(weight.shape[-2])
                weight.uniform_(-bound, bound)
                bias.uniform_(-bound, bound)
            for number in range(self.config.couplings):
                held = self.held(number)
                self.weights[0][number, :, held:] = 0.0
                self.weights[2][number, :, :, self.config.features - held :] = 0.0
            for number, weight in enumerate(self.weights):
                if self.config.lipschitz is not None:
                    direction = getattr(self, f"direction{number}")
                    direction.normal_()
                    power_iteration(weight, direction, 15)

    def _init_weights(self, module: nn.Module) -> None:
        """Done when the weights are made."""

    def forward(self, features: Tensor, return_loss: bool = True) -> AnomalyOutput:
        """features: (B, d) floats. return_loss: no effect; tells the Trainer that a loss comes without labels."""
        nll = self.negative_log_likelihood(features.to(self.weights[0].dtype), self.layers())
        return AnomalyOutput(loss=nll.mean(), losses=nll, scores=nll.detach())

    def negative_log_likelihood(self, x: Tensor, layers: Layers) -> Tensor:
        """-log p(x) (B,) of rows x (B, d), in nats. layers: of `layers`.

        Args:
            x: Rows (B, d).
            layers: Of `layers`.
        """
        z, log_det = self.encode(x, layers)
        return 0.5 * (z.square().sum(1) + z.shape[1] * math.log(2.0 * math.pi)) - log_det

    def held(self, number: int) -> int:
        """How many columns coupling ``number`` holds: the first ones if the number is even, else the last ones.

        Args:
            number: Of the coupling, from 0.
        """
        return self.middle if number % 2 == 0 else self.config.features - self.middle

    def encode(self, x: Tensor, layers: Layers | None = None) -> tuple[Tensor, Tensor]:
        """Returns z (B, d) and log |det dz/dx| (B,) of rows x (B, d).

        Args:
            x: Rows (B, d).
            layers: Of `layers`.
        """
        layers = self.layers() if layers is None else layers
        log_det = x.new_zeros(len(x))
        for number in range(self.config.couplings):
            x, moved = self.couple(x, number, layers)
            log_det = log_det + moved
        return x, log_det

    def couple(self, x: Tensor, number: int, layers: Layers) -> tuple[Tensor, Tensor]:
        """Coupling ``number`` of rows x (B, d): y (B, d) and log |det dy/dx| (B,).

        Args:
            x: Rows (B, d).
            number: Of the coupling, from 0.
            layers: Of `layers`.
        """
        first, last = x.tensor_split([self.middle], 1)
        held, free = (first, last) if number % 2 == 0 else (last, first)
        s, t = self.scale_and_shift(held, number, layers)
        free = torch.addcmul(t, free, s.exp())
        return torch.cat([held, free] if number % 2 == 0 else [free, held], 1), s.sum(1)

    def uncouple(self, y: Tensor, number: int, layers: Layers) -> Tensor:
        """The rows x (B, d) that coupling ``number`` maps to y (B, d).

        Args:
            y: (B, d).
            number: Of the coupling, from 0.
            layers: Of `layers`.
        """
        first, last = y.tensor_split([self.middle], 1)
        held, free = (first, last) if number % 2 == 0 else (last, first)
        s, t = self.scale_and_shift(held, number, layers)
        free = (free - t) * (-s).exp()
        return torch.cat([held, free] if number % 2 == 0 else [free, held], 1)

    def decode(self, z: Tensor) -> Tensor:
        """The rows x (B, d) that `encode` maps to z (B, d).

        Args:
            z: (B, d), of the prior.
        """
        layers = self.layers()
        for number in reversed(range(self.config.couplings)):
            z = self.uncouple(z, number, layers)
        return z

    def layers(self) -> Layers:
        """The weights of the three layers of s and t, (L, 2, in, out), and what caps them, (L, 2, 1, 1), None without a cap.

        In training the cap's estimate of the spectral norms moves on by one power iteration.
        """
        k = self.config.lipschitz
        if k is None:
            return [(weight, None) for weight in self.weights]
        layers: Layers = []
        for number, weight in enumerate(self.weights):
            direction = getattr(self, f"direction{number}")
            if self.training and torch.is_grad_enabled():
                power_iteration(weight, direction)
            layers.append((weight, cap_factor(weight, direction.clone(), k)[..., None, None]))
        return layers

    def capped_layers(self) -> Layers:
        """`layers` with the caps multiplied into the weights, for many forwards with the same weights."""
        return [(weight if factor is None else weight * factor, None) for weight, factor in self.layers()]

    def scale_and_shift(self, held: Tensor, number: int, layers: Layers) -> tuple[Tensor, Tensor]:
        """Returns s and t, (B, d - m) each, of coupling ``number`` for its m held columns (B, m).

        Args:
            held: The held columns (B, m).
            number: Of the coupling, from 0.
            layers: Of `layers`.
        """
        (w1, f1), (w2, f2), (w3, f3) = ((weight[number], factor if factor is None else factor[number]) for weight, factor in layers)
        b1, b2, b3 = (bias[number] for bias in self.biases)
        m = held.shape[1]
        free = self.config.features - m
        hidden = F.leaky_relu(_affine(held.expand(2, *held.shape), w1[:, :m], f1, b1), 0.01)
        hidden = F.leaky_relu(_affine(hidden, w2, f2, b2), 0.01)
        s, t = _affine(hidden, w3[..., :free], f3, b3[..., :free]).unbind(0)
        return s.tanh(), t


def _affine(x: Tensor, weight: Tensor, factor: Tensor | None, bias: Tensor) -> Tensor:
    return torch.baddbmm(bias, x, weight) if factor is None else torch.addcmul(bias, torch.bmm(x, weight), factor)


AutoConfig.register(RealNVPConfig.model_type, RealNVPConfig, exist_ok=True)
AutoModel.register(RealNVPConfig, RealNVPModel, exist_ok=True)
