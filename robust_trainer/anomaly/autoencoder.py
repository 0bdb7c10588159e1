"""The autoencoder that RCA trains two or more of (Dissertation chapter 2): plain or variational, one loss and one score per row."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from .output import AnomalyOutput

SLOPE = 0.1


class AutoencoderConfig(PreTrainedConfig):
    """Settings of `AutoencoderModel`.

    Args:
        features: Columns d of a row.
        hidden_size: Units h of each of the four hidden layers.
        latent_size: Units of the bottleneck.
        dropout: Share of the units that a training pass leaves out, in [0, 1).
        variational: A VAE.
        kl_weight: >= 0, the weight of a VAE's divergence (1: the evidence lower bound with unit variance of the decoder).
    """

    model_type = "robust-autoencoder"

    def __init__(
        self, features: int = 2, hidden_size: int = 128, latent_size: int = 10, dropout: float = 0.5, variational: bool = False,
        kl_weight: float = 1.0, **kwargs,
    ):  # fmt: skip
        self.features, self.hidden_size, self.latent_size = features, hidden_size, latent_size
        self.dropout, self.variational, self.kl_weight = dropout, variational, kl_weight
        super().__init__(**kwargs)


class AutoencoderModel(PreTrainedModel):
    """d - h - h - z - h - h - d with LeakyReLU(0.1) and a sigmoid at the end: rows are expected in [0, 1], others err more.

    Dropout follows each hidden layer of the encoder, the bottleneck and the first hidden layer of the decoder, as in the authors'
    code. ``forward`` returns an `AnomalyOutput`: ``scores`` (B,) is the reconstruction error, the squared difference's sum over the
    columns; ``losses`` (B,) the same, for a VAE plus kl_weight KL(q(z | x) || N(0, I)). In evaluation mode nothing is drawn.
    """

    config_class = AutoencoderConfig
    base_model_prefix = "autoencoder"
    main_input_name = "features"
    sample_losses = True

    def __init__(self, config: AutoencoderConfig):
        super().__init__(config)
        d, h, z = config.features, config.hidden_size, config.latent_size
        self.encode1, self.encode2 = nn.Linear(d, h), nn.Linear(h, h)
        self.encode3 = nn.Linear(h, 2 * z if config.variational else z)
        self.decode1, self.decode2, self.decode3 = nn.Linear(z, h), nn.Linear(h, h), nn.Linear(h, d)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leaves torch's own initialisation."""

    def forward(self, features: Tensor, return_loss: bool = True) -> AnomalyOutput:
        """features: (B, d) floats. return_loss: no effect; tells the Trainer that a loss comes without labels."""
        x, config = features.to(self.decode3.weight.dtype), self.config
        hidden = self._drop(F.leaky_relu(self.encode1(x), SLOPE))
        hidden = self._drop(F.leaky_relu(self.encode2(hidden), SLOPE))
        code = self.encode3(hidden)
        divergence: Tensor | None = None
        if config.variational:
            mean, log_variance = code.chunk(2, 1)
            divergence = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1.0).sum(1)
            code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else mean
        else:
            code = self._drop(F.leaky_relu(code, SLOPE))
        hidden = self._drop(F.leaky_relu(self.decode1(code), SLOPE))
        rebuilt = self.decode3(F.leaky_relu(self.decode2(hidden), SLOPE)).sigmoid()
        errors = (rebuilt - x).square().sum(1)
        losses = errors if divergence is None else errors + config.kl_weight * divergence
        return AnomalyOutput(loss=losses.mean(), losses=losses, scores=errors.detach(), reconstruction=rebuilt)

    def _drop(self, hidden: Tensor) -> Tensor:
        share = self.config.dropout
        if not self.training or share == 0 or hidden.is_cuda:
            return F.dropout(hidden, share, self.training)
        # torch draws Bernoulli numbers one by one on the CPU: nearly three times the time of uniform ones
        return hidden * ((torch.rand_like(hidden) >= share) * hidden.new_full((), 1.0 / (1.0 - share)))


AutoConfig.register(AutoencoderConfig.model_type, AutoencoderConfig, exist_ok=True)
AutoModel.register(AutoencoderConfig, AutoencoderModel, exist_ok=True)
