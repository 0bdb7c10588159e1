"""RCA's scores at test time: the reconstruction error over many networks thinned by dropout, all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.randomness import keyed_generator
from .autoencoder import SLOPE, AutoencoderModel

#: Sets of thinned copies; a hash of the row says which one judges it.
GROUPS = 16
#: Rows that are scored at a time.
ROWS = 512


@dataclass(frozen=True)
class Kept:
    """The units of a layer that V thinned copies keep: their numbers (V, k), and what each counts, 1 / (1 - r), 0 for a filler."""

    units: Tensor
    weight: Tensor

    @classmethod
    def draw(cls, size: int, rate: float, passes: int, generator: torch.Generator) -> Kept:
        """Each unit is left out with probability ``rate``; passes come in pairs of opposite draws.

        Args:
            size: Number of units.
            rate: Probability in [0, 1).
            passes: Number of copies, even.
            generator: Draws.
        """
        numbers = torch.rand(-(-passes // 2), size, generator=generator)
        keep = torch.stack([numbers, 1.0 - numbers], 1).flatten(0, 1)[:passes] >= rate
        count = keep.sum(1)
        width = max(int(count.max()), 1)
        units = torch.argsort((~keep).long(), dim=1, stable=True)[:, :width]
        return cls(units, (torch.arange(width) < count.unsqueeze(1)).float() / (1.0 - rate))

    def to(self, device: torch.device) -> Kept:
        """On that device."""
        return Kept(self.units.to(device), self.weight.to(device))


class Thinned:
    """V thinned copies of one autoencoder: in each of the four layers that dropout follows they keep other units.

    A VAE's bottleneck, its mean, they keep whole.
    """

    def __init__(self, network: AutoencoderModel, passes: int, generator: torch.Generator):
        config = network.config
        h, r, variational = config.hidden_size, config.dropout, config.variational
        sizes = ((h, r), (h, r), (config.latent_size, 0.0 if variational else r), (h, r))
        encode1, encode2, code, decode1 = (
            Kept.draw(size, rate, passes, generator).to(network.decode3.weight.device) for size, rate in sizes
        )
        self.network, self.first = network, encode1.units
        self.layers = [
            _thin(network.encode2, encode1, encode2), _thin(network.encode3, encode2, code),
            _thin(network.decode1, code, decode1), _thin(network.decode2, decode1, None),
            (network.decode3.weight.expand(passes, -1, -1), network.decode3.bias.view(1, -1, 1)),
        ]  # fmt: skip

    def errors(self, x: Tensor) -> Tensor:
        """The mean over the copies of the squared reconstruction error of rows x (B, d), a sum over the columns, (B,).

        Rows are columns here, so that leaving units out is picking rows of memory; the products shrink with the layers.

        Args:
            x: Rows (B, d).
        """
        net, rows = self.network, x.T
        hidden = torch.addmm(net.encode1.bias.unsqueeze(1), net.encode1.weight, rows)
        hidden = F.leaky_relu_(hidden, SLOPE)[self.first]
        for number, (weight, bias) in enumerate(self.layers):
            hidden = torch.baddbmm(bias, weight, hidden)
            if number < len(self.layers) - 1 and not (number == 1 and net.config.variational):
                F.leaky_relu_(hidden, SLOPE)
        return hidden.sigmoid_().sub_(rows).square_().mean(0).sum(0)


def _thin(layer: nn.Linear, below: Kept, above: Kept | None) -> tuple[Tensor, Tensor]:
    """Weights (V, k', k) and biases (V, k', 1) from the units kept ``below`` to the ``wanted`` ones, all of them for None."""
    copies, size = len(below.units), layer.out_features
    units = torch.arange(size, device=below.units.device).expand(copies, -1)
    if above is not None:  # a VAE's code layer has variances after the means: they are not wanted
        units = above.units
    weight = layer.weight[units].gather(2, below.units.unsqueeze(1).expand(-1, units.shape[1], -1))
    return weight * below.weight.unsqueeze(1), layer.bias[units].unsqueeze(2)


def groups_of(x: Tensor, seed: int) -> Tensor:
    """The group of each of rows x (B, d), a hash of its numbers in [0, GROUPS), (B,).

    Args:
        x: Rows (B, d).
        seed: Of the copies.
    """
    keys = torch.randint(2**62, (x.shape[1],), generator=torch.Generator().manual_seed(seed)).to(x.device) * 2 + 1
    bits = (x.float() + 0.0).contiguous().view(torch.int32).long()  # + 0: there are two zeros
    return ((bits * keys).sum(1) >> 40) % GROUPS


def copies_for(networks: Sequence[AutoencoderModel], passes: int, seed: int, group: int) -> list[Thinned]:
    """The ``passes`` thinned copies of each network that judge the rows of a group.

    Args:
        networks: The autoencoders.
        passes: Number of copies, even.
        seed: Of the copies.
        group: Of the rows.
    """
    generator = keyed_generator("dropout", seed, group)
    return [Thinned(network, passes, generator) for network in networks]


@torch.no_grad()
def ensemble_scores(networks: Sequence[AutoencoderModel], x: Tensor, passes: int, seed: int) -> Tensor:
    """Scores (B,) of rows x (B, d): the reconstruction error's mean over ``passes`` thinned copies of each network.

    Dissertation Algorithm 1, lines 11 to 15. Rows of a group share their copies, so that these are products of matrices; the groups
    have copies of their own, so that one draw does not shift all scores the same way (docs/guides/anomaly.md). Seed and row
    decide a score, not the rows beside it. passes 0: the networks as they are, without dropout.

    Args:
        networks: The autoencoders.
        x: Rows (B, d).
        passes: Number of copies, even.
        seed: Of the copies.
    """
    if passes == 0:
        return in_parts(lambda part: torch.stack([network(part).scores for network in networks]).mean(0), x)
    scores, group = x.new_empty(len(x)), groups_of(x, seed)
    for number in group.unique().tolist():
        copies = copies_for(networks, passes, seed, number)
        rows = (group == number).nonzero().flatten()
        scores[rows] = in_parts(lambda part: torch.stack([c.errors(part) for c in copies]).mean(0), x[rows])  # noqa: B023
    return scores


def in_parts(score: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``score`` (B,) of rows x (B, d), some hundred at a time.

    Args:
        score: Rows (b, d) -> scores (b,).
        x: Rows (B, d).
    """
    return torch.cat([score(part) for part in x.split(ROWS)])
