"""M copies of one network behind one module: co-teaching, Co-PRL and decoupling train them side by side."""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from ..problems.unlabelled import losses_and_scores
from .outputs import logits_of
from .peer_config import Each, PeerConfig, PeerOutput
from .saved_networks import Export, clear_networks, network_folders, write_networks

logger = logging.get_logger(__name__)
#: What the Trainer asks a model for that is not in its config; of several networks the first one's.
_ALIKE = (
    "hf_device_map", "hf_quantizer", "is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized", "quantization_method", "model_tags",
)  # fmt: skip
#: What `PreTrainedModel.post_init` takes up from a model's parts.
_HANDED_UP = (
    "_keep_in_fp32_modules", "_keep_in_fp32_modules_strict", "_no_split_modules", "_skip_keys_device_placement",
    "_keys_to_ignore_on_load_unexpected", "_keys_to_ignore_on_load_missing",
)  # fmt: skip
_AUTO = (AutoModelForImageClassification, AutoModelForSequenceClassification, AutoModelForAudioClassification, AutoModel)


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
        config.share([own for peer in self.peers if isinstance(own := getattr(peer, "config", None), PreTrainedConfig)])
        first = self.one_network()
        takes = inspect.signature(first.forward).parameters
        inputs = [name for name in ("pixel_values", "input_ids") if name in takes] or [*takes, "pixel_values"]
        self.main_input_name = getattr(first, "main_input_name", inputs[0])
        # what the Trainer would conclude from a peer's own signature; this model's takes anything
        anything = any(p.kind is p.VAR_KEYWORD for p in takes.values())
        self.accepts_loss_kwargs = getattr(first, "accepts_loss_kwargs", anything)
        adapted = hasattr(self.peers[0], "peft_config") or getattr(self.peers[0], "_hf_peft_config_loaded", False)
        for name in _ALIKE:
            if adapted and name == "is_quantized":  # the Trainer refuses a quantized model without adapters
                continue
            if (value := getattr(self.peers[0], name, None)) is not None:
                setattr(self, name, value)
        self._hand_up_properties()
        self.export: Export | None = None  # what `save_pretrained` writes: None, all networks as this class; the Trainer sets it
        self.post_init()

    def _hand_up_properties(self) -> None:
        """Has `post_init`, which asks direct children alone, find what transformers models say of their weights and layers."""
        networks = [(i, peer) for i, peer in enumerate(self.peers) if isinstance(peer, PreTrainedModel)]
        every: Any = self.peers
        every.all_tied_weights_keys = {
            f"{i}.{k}": f"{i}.{v}" for i, peer in networks for k, v in getattr(peer, "all_tied_weights_keys", {}).items()
        }
        every._keys_to_ignore_on_save = {f"{i}.{k}" for i, peer in networks for k in peer._keys_to_ignore_on_save or ()}
        for name in _HANDED_UP:
            setattr(every, name, {one for _, peer in networks for one in getattr(peer, name, None) or ()})

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
        first = {id(p) for p in models[0].parameters() if p.requires_grad}
        for number, other in enumerate(models[1:], 1):
            twice = next((name for name, p in other.named_parameters() if id(p) in first), None)
            if twice is not None:
                raise ValueError(f"networks 0 and {number} share their weights ({twice}): build each one anew (in model_init too).")
            first |= {id(p) for p in other.parameters() if p.requires_grad}
        own = getattr(models[0], "config", None)
        shared: dict[str, Any] = {}
        if isinstance(own, PreTrainedConfig):
            settings = own.to_dict()
            shared = {k: settings[k] for k in ("id2label", "label2id", "problem_type") if settings.get(k) is not None}
            if not {"id2label", "num_labels", "label2id"} & set(own.to_diff_dict()):
                shared = {k: v for k, v in shared.items() if k == "problem_type"}
            if "num_channels" in settings:
                shared["num_channels"] = settings["num_channels"]
            shared.update(peer=settings, architecture=type(models[0]).__name__, name_or_path=own.name_or_path)
            if own.is_encoder_decoder:
                shared["is_encoder_decoder"] = True
        return cls(PeerConfig(peers=len(models), **shared), models)

    def init_weights(self) -> None:
        """The peers come with their weights."""

    def one_network(self) -> nn.Module:
        """Returns the first network without PEFT's wrapper: what the Trainer reads signatures and label names from."""
        first: Any = self.peers[0]
        return first.get_base_model() if hasattr(first, "peft_config") and hasattr(first, "get_base_model") else first

    def signature_columns(self, label_names: Sequence[str]) -> list[str]:
        """Returns the columns that a network takes, and the labels'.

        Args:
            label_names: the Trainer's.
        """
        names = inspect.signature(self.one_network().forward).parameters
        return list(dict.fromkeys([*names, "label", "label_ids", *label_names]))

    # ---- what the Trainer and its users call on one network -----------------------------------------------------------------

    def get_input_embeddings(self) -> Any:
        """Returns the networks' input embeddings as one: what is set on it, or hooked to it (NEFTune), reaches each."""
        return Each([peer.get_input_embeddings() for peer in self._networks()])

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """Resizes each network's; arguments as `PreTrainedModel.resize_token_embeddings`."""
        return Each([peer.resize_token_embeddings(*args, **kwargs) for peer in self._networks()])

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Has each network recompute its activations; arguments as the networks' own."""
        for peer in self._networks():
            enable = getattr(peer, "activation_checkpointing_enable", None)
            (enable or peer.gradient_checkpointing_enable)(*args, **kwargs)

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """The former name of `activation_checkpointing_enable`."""
        for peer in self._networks():
            peer.gradient_checkpointing_enable(*args, **kwargs)

    def enable_input_require_grads(self) -> None:
        """Has each network's embeddings require gradients."""
        for peer in self._networks():
            peer.enable_input_require_grads()

    def disable_input_require_grads(self) -> None:
        """Undoes `enable_input_require_grads`."""
        for peer in self._networks():
            peer.disable_input_require_grads()

    def _networks(self) -> list[Any]:
        return list(self.peers)

    def save_pretrained(  # type: ignore[override]
        self, save_directory: Any, is_main_process: bool = True, state_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Saves all networks as one `PeerModel` or, where ``export`` is set, one that opens anywhere and the others beside it.

        Args:
            save_directory: the folder.
            is_main_process: whether this process writes.
            state_dict: of this model, where it is sharded.
            **kwargs: of `PreTrainedModel.save_pretrained`.
        """
        if is_main_process:
            clear_networks(save_directory)
        if self.export is not None and self.export.choice != "ensemble":
            write_networks(save_directory, self._networks(), self.export, is_main_process, state_dict, **kwargs)
        else:
            super().save_pretrained(save_directory, is_main_process=is_main_process, state_dict=state_dict, **kwargs)

    # ---- the forward ---------------------------------------------------------------------------------------------------------

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
        parts = [_loss_and_logits(output, labels is not None) for output in outputs]
        logits = torch.stack([z for _, z in parts if z is not None], 1)
        losses = [loss for loss, _ in parts if loss is not None]
        loss = torch.stack(losses).mean() if len(losses) == len(outputs) else None
        return PeerOutput(loss=loss, logits=logits.mean(1), peer_logits=logits)


def _loss_and_logits(output: Any, labelled: bool) -> tuple[Tensor | None, Tensor | None]:
    """A network's own loss, None where it has none, and its logits; given labels a tuple begins with the loss (as in Trainer)."""
    if isinstance(output, tuple | list) and labelled and len(output) > 1 and output[0].dim() == 0:
        return output[0], output[1]
    return output.get("loss") if isinstance(output, dict) else None, logits_of(output)


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
            # one config for all, so that what is set on the model's reaches every network
            others.append(copy.deepcopy(model, {id(config): config}))
            if head is not None:
                head(others[-1]).reset_parameters()
            elif scratch:
                _start_afresh(others[-1])
            else:
                _fresh_head(others[-1])
    return PeerModel.of([model, *others])


def with_peers(model: Any, recipe: Any, seed: int, head_of: Callable[[nn.Module], nn.Linear]) -> Any:
    """Returns a model as a method trains it: `make_peers` of one network where it trains several, else as it is.

    Args:
        model: as it was given.
        recipe: the method, None without one.
        seed: of the run.
        head_of: finds a network's head.
    """
    if recipe is None or recipe.num_networks == 1 or not isinstance(model, nn.Module) or isinstance(model, PeerModel):
        return model
    return make_peers(model, recipe.num_networks, seed, head_of if recipe.freeze_backbone else None)


def build_networks(build: Callable[[], nn.Module], count: int, trained: weakref.ref[nn.Module] | None) -> nn.Module:
    """Returns what ``model_init`` builds, called once per network: the random state moves on, so that each starts elsewhere.

    Args:
        build: calls ``model_init``.
        count: of networks.
        trained: the model of the training before, None without one.

    Raises:
        ValueError: where it returns a network twice, or one that was trained before.
    """
    before = trained() if trained is not None else None
    used: list[nn.Module] = list(before.peers) if isinstance(before, PeerModel) else []
    networks: list[nn.Module] = []
    for _ in range(count):
        networks.append(model := build())
        if isinstance(model, PeerModel):
            return model
        if model is before or any(model is other for other in (*used, *networks[:-1])):
            how = "the same {} twice" if any(model is other for other in networks[:-1]) else "the {} that was trained before"
            raise ValueError(f"model_init returned {how.format(type(model).__name__)}: build a new model in each call.")
    if count == 1:
        return networks[0]
    alike = zip(*(network.parameters() for network in networks[:2]))
    if all(a.shape == b.shape and torch.equal(a, b) for a, b in alike):
        logger.warning("model_init builds networks of equal weights, which learn alike: set no seed in it.")
    return PeerModel.of(networks)


def _start_afresh(model: Any) -> None:
    """Other first weights, of the model's config; what is frozen stays, and so does whatever else was set on the model."""
    fresh = type(model)(model.config).to(next(model.parameters()).dtype).state_dict()
    changed = sorted(k for k, v in model.state_dict().items() if k not in fresh or fresh[k].shape != v.shape)
    if changed:
        raise ValueError(
            f"{type(model).__name__} was changed after it was built ({changed[0]}), so its config cannot give a second network: "
            "pass model_init, which is called once per peer."
        )
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    model.load_state_dict({k: v for k, v in fresh.items() if k not in frozen}, strict=False)


def _fresh_head(model: nn.Module) -> None:
    heads = [m for m in model.modules() if hasattr(m, "reset_parameters") and any(p.dim() > 1 for p in m.parameters(recurse=False))]
    if not heads:
        raise ValueError(f"{type(model).__name__} has no last layer to start anew: pass model_init, which is called once per peer.")
    with torch.no_grad():
        heads[-1].reset_parameters()  # type: ignore[operator]


def load_networks(folder: str, load: Callable[[str], nn.Module]) -> nn.Module:
    """Returns what a training saved: all of its networks as a `PeerModel`, or the one.

    Args:
        folder: of a saved model.
        load: opens one network's folder, such as ``AutoModelForSequenceClassification.from_pretrained``.

    Raises:
        ValueError: where some network's folder is missing.
    """
    folders = network_folders(folder)
    return load(folder) if folders is None else PeerModel.of([load(one) for one in folders])
