"""Several networks on disk: one ordinary model that opens anywhere, and the others in folders of their own beside it.

    config.json, model.safetensors     the exported network, as its own save_pretrained writes it
    peers/0/, peers/1/, ...            the others, each of which opens by itself; of an average, all
    peers/peers.json                   how many there are, and which one was exported; written last

A folder without peers.json holds one model.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from transformers.utils import logging

from ..reporting.atomic_files import replacing, write_text

logger = logging.get_logger(__name__)
FOLDER, RECORD = "peers", "peers.json"
#: What ``export`` takes, beside ``peer0``, ``peer1``, ...
EXPORTS = ("best", "average", "ensemble")
_NUMBERED = re.compile(r"peer(\d+)")


@dataclass(frozen=True)
class Export:
    """What of several networks is saved as the model.

    Attributes:
        choice: ``best``, ``average``, ``ensemble`` or ``peer<i>``.
        losses: each network's mean loss on the samples that the run trusts, None where unknown.
    """

    choice: str = "best"
    losses: Sequence[float] | None = None

    def number(self) -> int | None:
        """Returns which network is exported, None for none of them."""
        if self.choice in ("average", "ensemble"):
            return None
        if (match := _NUMBERED.fullmatch(self.choice)) is not None:
            return int(match[1])
        if self.losses is None:
            logger.warning("no ledger tells which network is better: network 0 is saved as the model (export='peer1' takes 1).")
            return 0
        known = [loss if math.isfinite(loss) else math.inf for loss in self.losses]
        return known.index(min(known))


def check_export(choice: Any, networks: int | None = None) -> None:
    """Refuses an ``export`` that says nothing, or nothing about so many networks.

    Args:
        choice: as given.
        networks: of the model, None where it is not known yet.

    Raises:
        ValueError: in one line.
    """
    match = _NUMBERED.fullmatch(choice) if isinstance(choice, str) else None
    if choice not in EXPORTS and match is None:
        raise ValueError(f"export={choice!r} is unknown: choose one of {', '.join(EXPORTS)}, peer0, peer1.")
    if networks == 1 and choice != "best":
        raise ValueError(f"export={choice!r} is for several networks, the model is one: leave export out.")
    if networks is not None and match is not None and int(match[1]) >= networks:
        raise ValueError(f"export={choice!r} but there are {networks} networks: choose one of peer0 to peer{networks - 1}.")


def write_networks(
    folder: Any, networks: Sequence[Any], export: Export, main: bool, state: dict[str, Tensor] | None, **kwargs: Any
) -> None:
    """Writes the networks.

    Args:
        folder: where to.
        networks: all of them.
        export: which one is the model.
        main: whether this process writes.
        state: of the `PeerModel` of the networks, where it is sharded, else None.
        **kwargs: of ``save_pretrained``.
    """
    folder, number = os.fspath(folder), export.number()
    states = [_part(state, f"peers.{i}.") if state is not None else None for i in range(len(networks))]
    if number is None:
        full = [own if own is not None else network.state_dict() for own, network in zip(states, networks)]
        _write(networks[0], folder, _average(full), main, **kwargs)
    else:
        _write(networks[number], folder, states[number], main, **kwargs)
    for i, (network, own) in enumerate(zip(networks, states)):
        if i != number:
            _write(network, os.path.join(folder, FOLDER, str(i)), own, main, **kwargs)
    if main:
        losses = None if export.losses is None else [loss if math.isfinite(loss) else None for loss in export.losses]
        record = {"networks": len(networks), "export": export.choice, "exported": number, "trusted_loss": losses}
        write_text(os.path.join(folder, FOLDER, RECORD), json.dumps(record, indent=1) + "\n")


def _write(network: Any, folder: str, state: dict[str, Tensor] | None, main: bool, **kwargs: Any) -> None:
    if hasattr(network, "save_pretrained"):
        network.save_pretrained(folder, state_dict=state, is_main_process=main, **kwargs)
    elif main:  # as the Trainer saves a model that is no transformers one
        os.makedirs(folder, exist_ok=True)
        tensors = {name: value.detach().clone().contiguous() for name, value in (state or network.state_dict()).items()}
        with replacing(os.path.join(folder, "model.safetensors")) as new:
            safetensors.torch.save_file(tensors, new, metadata={"format": "pt"})


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def _average(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of the networks' weights; counts and the like are the first one's."""
    mean = {}
    for name, first in states[0].items():
        if first.is_floating_point():
            mean[name] = torch.stack([state[name].detach().to(first.device).double() for state in states]).mean(0).to(first.dtype)
        else:
            mean[name] = first
    return mean


def clear_networks(folder: Any) -> None:
    """Removes the networks that an earlier save left beside a model; nothing else in the folder.

    Args:
        folder: that is saved to.
    """
    peers = os.path.join(os.fspath(folder), FOLDER)
    if not os.path.isfile(os.path.join(peers, RECORD)):
        return
    os.remove(os.path.join(peers, RECORD))
    for name in os.listdir(peers):
        if name.isdecimal() and not os.path.islink(os.path.join(peers, name)):
            shutil.rmtree(os.path.join(peers, name))
    if not os.listdir(peers):
        os.rmdir(peers)


def read_record(folder: Any) -> dict[str, Any] | None:
    """Returns what was saved: ``networks``, ``export``, ``exported`` and ``trusted_loss``; None for a folder of one model.

    Args:
        folder: of a saved model.

    Raises:
        ValueError: for a damaged record.
    """
    path = os.path.join(os.fspath(folder), FOLDER, RECORD)
    if not os.path.isfile(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            record = json.loads(file.read(1 << 16))
        networks, exported = record["networks"], record["exported"]
        if not (type(networks) is int and 2 <= networks <= 1000 and (exported is None or exported in range(networks))):
            raise ValueError(f"networks={networks!r}, exported={exported!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path!r} is damaged ({error}): save the model again, or delete the file to open one network.") from error
    return record


def holds_one_network(folder: Any) -> bool:
    """Returns whether the weights in a folder are those of a network, not of a `PeerModel`; False where there are none.

    Args:
        folder: of a saved model.
    """
    path = os.path.join(os.fspath(folder), "model.safetensors")
    if not os.path.isfile(path):
        return any(os.path.isfile(os.path.join(os.fspath(folder), f"adapter_model.{end}")) for end in ("safetensors", "bin"))
    with safetensors.safe_open(path, framework="pt") as handle:
        return not any(name.startswith("peers.") for name in handle.keys())


def in_words(record: dict[str, Any]) -> str:
    """Returns which network was exported, for a line of text.

    Args:
        record: of `read_record`.
    """
    return "the average" if record["exported"] is None else f"peer{record['exported']}"


def network_folders(folder: Any) -> list[str] | None:
    """Returns the folder of each network, in order; None for a folder of one model.

    Args:
        folder: of a saved model.

    Raises:
        ValueError: for a damaged record, and where a network's folder is missing.
    """
    record = read_record(folder)
    if record is None:
        return None
    folder = os.fspath(folder)
    folders = [folder if i == record["exported"] else os.path.join(folder, FOLDER, str(i)) for i in range(record["networks"])]
    missing = next((one for one in folders if not os.path.isdir(one)), None)
    if missing is not None:
        raise ValueError(f"{missing!r} is missing: {folder!r} was saved with {record['networks']} networks, copy the whole folder.")
    return folders
