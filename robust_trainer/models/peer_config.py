"""What several networks return, and their config: what is set on it reaches each of them, as with one network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput


@dataclass
class PeerOutput(ModelOutput):
    """What a `PeerModel` returns.

    Attributes:
        loss: mean of the networks' own, scalar.
        logits: mean of the networks' (B, C). peer_logits: each network's (B, M, C).
        losses, scores: of networks that return them for each sample, their means (B,). peer_losses: both, (B, M, 2).
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    peer_logits: Tensor | None = None
    losses: Tensor | None = None
    scores: Tensor | None = None
    peer_losses: Tensor | None = None


class PeerConfig(PreTrainedConfig):
    """Settings of a `PeerModel`.

    Args:
        peer: the networks' own config as a dict, None for plain modules.
        architecture: their class's name.
        peers: their number M.
        **kwargs: of `PreTrainedConfig`.
    """

    model_type = "robust-peers"
    #: What this config has of its own; the rest, once the networks are there, is read from and written to theirs as well.
    own = frozenset(
        ("peer", "architecture", "peers", "keys_to_ignore_at_inference", "architectures", "dtype", "transformers_version")
    )

    def __init__(self, peer: dict[str, Any] | None = None, architecture: str | None = None, peers: int = 2, **kwargs: Any):
        self.peer, self.architecture, self.peers = peer, architecture, peers
        kwargs.setdefault("keys_to_ignore_at_inference", ["peer_logits", "peer_losses"])
        super().__init__(**kwargs)

    def share(self, configs: Sequence[Any]) -> None:
        """Makes what is set here from now on (special tokens, ``use_cache``, ...) reach the networks' configs, as with one network.

        Args:
            configs: of the networks.
        """
        self._networks = list(configs)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if not name.startswith("_") and name not in self.own:
            for config in self.__dict__.get("_networks", ()):
                setattr(config, name, value)

    def __getattr__(self, name: str) -> Any:
        networks = self.__dict__.get("_networks")
        if networks and not name.startswith("_"):
            return getattr(networks[0], name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def get_text_config(self, *args: Any, **kwargs: Any) -> Any:
        """Returns this config, whose settings reach the networks', or where they have a part for text, these parts as one.

        Args:
            *args: as `PreTrainedConfig.get_text_config`.
            **kwargs: as there.
        """
        networks = self.__dict__.get("_networks", ())
        parts = [config.get_text_config(*args, **kwargs) for config in networks]
        return self if all(part is config for part, config in zip(parts, networks)) else Each(parts)

    def _get_generation_parameters(self) -> dict[str, Any]:
        return {}  # those are the networks' own, in ``peer``

    def to_dict(self) -> dict[str, Any]:
        """Returns all settings; of the networks as their own config has them now."""
        networks = self.__dict__.get("_networks")
        settings = super().to_dict()
        settings.pop("_networks", None)
        if networks and self.peer is not None:
            settings["peer"] = networks[0].to_dict()
        return settings


class Each:
    """Objects of one kind as one: the first answers, all are written to, a hook is registered on each.

    Args:
        objects: of the networks, in order; one that comes twice counts once.
    """

    def __init__(self, objects: Sequence[Any]):
        self.__dict__["_objects"] = list({id(o): o for o in objects}.values())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objects[0], name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._objects[0])

    def __setattr__(self, name: str, value: Any) -> None:
        for one in self._objects:
            setattr(one, name, value)

    def __delattr__(self, name: str) -> None:
        for one in self._objects:
            delattr(one, name)

    def register_forward_hook(self, *args: Any, **kwargs: Any) -> Handles:
        """Registers a hook on each; returns the handle of all."""
        return Handles([one.register_forward_hook(*args, **kwargs) for one in self._objects])


class Handles:
    """Handles of hooks as one.

    Args:
        handles: of each.
    """

    def __init__(self, handles: Sequence[Any]):
        self.handles = handles

    def remove(self) -> None:
        """Removes each."""
        for handle in self.handles:
            handle.remove()
