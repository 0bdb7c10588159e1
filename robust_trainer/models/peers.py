"""M copies of one network behind one module: co-teaching, Co-PRL and decoupling train them side by side."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import ModelOutput, logging

from ..problems.unlabelled import losses_and_scores
from .outputs import logits_of

logger = logging.get_logger(__name__)
_AUTO = (AutoModelForImageClassification, AutoModelForSequenceClassification, AutoModelForAudioClassification, AutoModel)


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

    def __init__(self, peer: dict[str, Any] | None = None, architecture: str | None = None, peers: int = 2, **kwargs: Any):
        self.peer, self.architecture, self.peers = peer, architecture, peers
        kwargs.setdefault("keys_to_ignore_at_inference", ["peer_logits", "peer_losses"])
        super().__init__(**kwargs)


class PeerModel(PreTrainedModel):
    """M networks of one architecture, called with the same inputs; trained together, saved and loaded as one model.

    ``forward`` returns a `PeerOutput`. For transformers models ``save_pretrained``, ``from_pretrained`` and the auto classes
    work; with the plain Trainer set ``remove_unused_columns=False``, since this signature takes anything. Peers that are plain
    modules are saved as a state dict and loaded into a ``PeerModel`` built of the same modules.
    """

    config_class = PeerConfig
    base_model_prefix = "peers"
    supports_gradient_checkpointing = True

    def __init__(self, config: PeerConfig, peers: Sequence[nn.Module] | None = None):
        super().__init__(config)
        self.peers = nn.ModuleList(peers if peers is not None else [_from_config(config) for _ in range(config.peers)])
        self.main_input_name = getattr(self.peers[0], "main_input_name", "pixel_values")
        takes = inspect.signature(self.peers[0].forward).parameters.values()
        # what the Trainer would conclude from a peer's own signature; this model's takes anything
        self.accepts_loss_kwargs = getattr(self.peers[0], "accepts_loss_kwargs", any(p.kind is p.VAR_KEYWORD for p in takes))
        self.post_init()

    @classmethod
    def of(cls, models: Sequence[nn.Module]) -> PeerModel:
        """Returns the networks as one model, as they are.

        Args:
            models: two or more of one class.

        Raises:
            ValueError: for fewer than two or for different classes.
        """
        if len(models) < 2 or len({type(m) for m in models}) > 1:
            kinds = [type(m).__name__ for m in models]
            raise ValueError(f"peers are {kinds}: give two or more networks of one class.")
        own = getattr(models[0], "config", None)
        shared: dict[str, Any] = {}
        if isinstance(own, PreTrainedConfig):
            settings = own.to_dict()
            shared = {k: settings[k] for k in ("id2label", "label2id", "problem_type") if settings.get(k) is not None}
            if not {"id2label", "num_labels", "label2id"} & set(own.to_diff_dict()):
                shared = {k: v for k, v in shared.items() if k == "problem_type"}
            if "num_channels" in settings:
                shared["num_channels"] = settings["num_channels"]
            shared.update(peer=settings, architecture=type(models[0]).__name__)
        return cls(PeerConfig(peers=len(models), **shared), models)

    def init_weights(self) -> None:
        """The peers come with their weights."""

    def forward(self, *args: Any, labels: Tensor | None = None, return_loss: bool = True, **inputs: Any) -> PeerOutput:
        """Returns the outputs of all networks on the same inputs; keywords as the networks' own ``forward``."""
        if labels is not None:  # named here so that the Trainer finds it
            inputs["labels"] = labels
        if "return_dict" in inputs:
            inputs["return_dict"] = True
        outputs = [peer(*args, **inputs) for peer in self.peers]
        if getattr(self.peers[0], "sample_losses", False):
            size = len(next(value for value in (*args, *inputs.values()) if isinstance(value, Tensor)))
            both = torch.stack([losses_and_scores(output, size, "PeerModel") for output in outputs], 1)
            mean = both.mean(1)
            return PeerOutput(loss=mean[:, 0].mean(), losses=mean[:, 0], scores=mean[:, 1], peer_losses=both)
        every = [logits_of(output) for output in outputs]
        logits = torch.stack([z for z in every if z is not None], 1)
        losses = [output["loss"] for output in outputs if isinstance(output, dict) and output.get("loss") is not None]
        loss = torch.stack(losses).mean() if len(losses) == len(outputs) else None
        return PeerOutput(loss=loss, logits=logits.mean(1), peer_logits=logits)


AutoConfig.register(PeerConfig.model_type, PeerConfig, exist_ok=True)
for _auto in _AUTO:
    _auto.register(PeerConfig, PeerModel, exist_ok=True)


def _from_config(config: PeerConfig) -> nn.Module:
    if config.peer is None:
        raise ValueError("the peers are plain modules that a config cannot build: use PeerModel.of([...]) and load_state_dict.")
    settings = {k: v for k, v in config.peer.items() if k != "model_type"}
    own = AutoConfig.for_model(config.peer["model_type"], **settings)
    named = getattr(transformers, config.architecture or "", None)
    if named is not None:
        return named(own)
    for auto in _AUTO:
        if type(own) in auto._model_mapping:
            return auto.from_config(own)
    raise ValueError(f"architecture={config.architecture!r} is unknown to transformers: register its classes first.")


def make_peers(model: nn.Module, count: int, seed: int, head: Callable[[nn.Module], nn.Linear] | None = None) -> PeerModel:
    """Returns ``model`` and ``count - 1`` networks like it that start from other weights, as a `PeerModel`.

    A transformers model from scratch gets peers with fresh weights (seeds seed + 1, ...). A model with pretrained weights, and a
    plain module, whose origin cannot be known, gets copies with a fresh last layer. For anything else pass ``model_init``, which
    is called once per peer.

    Args:
        model: the first network.
        count: M.
        seed: of the run; network m starts from seed + m.
        head: where all but the heads stays as it is, a network's head; the others are then copies with fresh ones, on one backbone.

    Raises:
        ValueError: where no peer can be made to differ.
    """
    if hasattr(model, "peft_config"):
        raise ValueError("a PEFT model has no copy with other weights: pass model_init, which is called once per peer.")
    config = getattr(model, "config", None)
    scratch = isinstance(model, PreTrainedModel) and isinstance(config, PreTrainedConfig) and not model.name_or_path
    if not scratch and head is None:
        logger.warning("the peers share their first weights but for a fresh last layer: for others pass model_init.")
    others = []
    for number in range(1, count):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + number)
            if head is not None:
                others.append(copy.deepcopy(model))
                head(others[-1]).reset_parameters()
            elif scratch:
                others.append(type(model)(copy.deepcopy(config)).to(next(model.parameters()).dtype))
            else:
                others.append(_fresh_head(copy.deepcopy(model)))
    return PeerModel.of([model, *others])


def _fresh_head(model: nn.Module) -> nn.Module:
    heads = [m for m in model.modules() if hasattr(m, "reset_parameters") and any(p.dim() > 1 for p in m.parameters(recurse=False))]
    if not heads:
        raise ValueError(f"{type(model).__name__} has no last layer to start anew: pass model_init, which is called once per peer.")
    with torch.no_grad():
        heads[-1].reset_parameters()  # type: ignore[operator]
    return model


def clip_each(model: PeerModel, clip: Callable[[Any, float], Any], largest: float) -> Tensor:
    """Clips each network's gradient by itself, since a common norm would let one shorten the other's step.

    Args:
        model: the networks.
        clip: ``accelerator.clip_grad_norm_``.
        largest: the norm that each gradient is clipped to.

    Returns:
        The norm of all gradients before it.
    """
    norms = [clip(peer.parameters(), largest) for peer in model.peers]
    return torch.stack([torch.as_tensor(norm) for norm in norms]).norm()


@contextmanager
def each_reported(trainer: Any) -> Iterator[None]:
    """Within it an evaluation sees (mean, each network's) logits; metrics come for the mean and, as ``peer<i>_...``, for each.

    Args:
        trainer: whose ``compute_metrics`` and ``preprocess_logits_for_metrics`` are wrapped.
    """
    metrics, hook = trainer.compute_metrics, trainer.preprocess_logits_for_metrics

    def both(predictions: Any) -> dict[str, Any]:
        mean, each = predictions.predictions
        more = {k: getattr(predictions, k) for k in ("inputs", "losses") if getattr(predictions, k, None) is not None}

        def one(own: np.ndarray) -> dict[str, Any]:
            return metrics(EvalPrediction(predictions=own, label_ids=predictions.label_ids, **more))

        report = dict(one(mean))
        for number in range(each.shape[1]):
            report.update({f"peer{number}_{key}": value for key, value in one(each[:, number]).items()})
        return report

    def hooked(logits: Any, labels: Any) -> Any:
        mean, each = logits
        return hook(mean, labels), torch.stack([hook(own, labels) for own in each.unbind(1)], 1)

    trainer.compute_metrics = both
    trainer.preprocess_logits_for_metrics = hooked if hook is not None else None
    try:
        yield
    finally:
        trainer.compute_metrics, trainer.preprocess_logits_for_metrics = metrics, hook
