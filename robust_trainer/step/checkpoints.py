"""What a robust run keeps in a checkpoint beside the Trainer's own files, and whether a checkpoint is whole; no pickle."""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ..ledger.fingerprint import check_same_data
from ..methods.recipe import Recipe
from ..methods.settings import PARTS as SETTING_PARTS
from ..methods.settings import defaults
from ..models.saved_networks import FOLDER
from ..reporting.atomic_files import DISK_FULL, replacing, write_json
from ..reporting.safe_text import plain
from .plan import RobustStep
from .process_files import MARK, PARTS, needed_files, saved_by, state_kind, why_missing

logger = logging.get_logger(__name__)

STATE_FILE = "robust_state.safetensors"
#: The Trainer's last file.
TRAINER_STATE = "trainer_state.json"
_FOLDER = re.compile(r"checkpoint-(\d+)")
#: A file of the folder, or of the folders in it: the networks', and those of a sharded model's parts.
_INSIDE = re.compile(rf"({FOLDER}/(\d+/)?|{PARTS.pattern}/)?[^/\\]+")
_WEIGHTS = ("model*.safetensors", "adapter_model*.safetensors", "pytorch_model*", "adapter_model*.bin")


def save(folder: str, step: RobustStep) -> None:
    """Writes the ledger and the rules' state, and the method's name and settings.

    Args:
        folder: of the checkpoint.
        step: of the run.
    """
    tensors = {name: tensor.contiguous() for name, tensor in step.state().items()}
    metadata = _identity(step.run.recipe)
    if step.run.ledger is not None:
        metadata["run"] = json.dumps(step.run.ledger.run, default=str)
    os.makedirs(folder, exist_ok=True)
    with replacing(os.path.join(folder, STATE_FILE)) as new:
        safetensors.torch.save_file(tensors, new, metadata=metadata)


def clear(folder: str) -> None:
    """Removes the state of an earlier robust run from a folder that a plain model is saved to.

    Args:
        folder: of the checkpoint.
    """
    path = os.path.join(folder, STATE_FILE)
    if os.path.isfile(path):
        os.remove(path)


def _identity(recipe: Recipe) -> dict[str, str]:
    rate = json.dumps(recipe.in_force.get("noise_rate"))  # where none is given, the run's length decides
    return {"method": recipe.name, "settings": json.dumps(dict(recipe.settings), sort_keys=True), "rate": rate}


def load(folder: str, step: RobustStep) -> None:
    """Restores what `save` wrote; the run that goes on is the same run, and its ledger keeps the name.

    Args:
        folder: of the checkpoint.
        step: of the run that goes on.

    Raises:
        ValueError: as `check_method`, for another data set, and for the same with its rows in another order.
    """
    check_method(folder, step.run.recipe)
    path = os.path.join(folder, STATE_FILE)
    metadata = metadata_of(path)
    ledger, before, rate = step.run.ledger, json.loads(metadata.get("run", "{}")), _identity(step.run.recipe)["rate"]
    if metadata.get("rate", rate) != rate:
        raise ValueError(
            f"checkpoint {folder!r} was made with noise_rate={json.loads(metadata['rate'])!r}, this run has {json.loads(rate)!r}: "
            "give the same noise_rate, or start a new run from its weights."
        )
    if ledger is not None and before:
        check_same_data(before, len(ledger), ledger.run.get("fingerprint"))
    step.load_state(safetensors.torch.load_file(path))
    if ledger is not None and "id" in before:
        ledger.run["id"] = before["id"]


def metadata_of(path: str) -> dict[str, str]:
    """Returns what a file that `save` wrote says of its run: method and settings, and the ledger's facts as JSON.

    Args:
        path: of the file.

    Raises:
        ValueError: for a damaged file.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as handle:
            return handle.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path!r} is damaged ({error}): resume from another checkpoint.") from error


def check_method(folder: str, recipe: Recipe | None) -> None:
    """Checks that the checkpoint was made by the method and the settings in force; of a folder that is none the Trainer tells.

    Args:
        folder: of the checkpoint.
        recipe: in force, None without a method.

    Raises:
        ValueError: for another method, another setting, or a damaged file.
    """
    path = os.path.join(folder, STATE_FILE)
    metadata = metadata_of(path) if os.path.isfile(path) else {}
    saved, method = metadata.get("method"), recipe.name if recipe is not None else None
    if saved != method and holds_weights(folder):
        raise ValueError(
            f"checkpoint {folder!r} was made by method={saved!r}, this run has method={method!r}: "
            "resume with the same method, or start a new run from its weights."
        )
    if recipe is None or saved != method:
        return
    before, now = json.loads(metadata.get("settings", "{}")), json.loads(_identity(recipe)["settings"])
    implicit = defaults(SETTING_PARTS, implicit=True)  # those are not among a method's settings where nobody set them
    before, now = {**implicit, **before}, {**implicit, **now}
    for name in sorted(before.keys() & now.keys()):
        if before[name] != now[name]:
            if name == "noise_rate" and "rate" in metadata:  # where none was given, another one than the default may have held
                before[name] = json.loads(metadata["rate"])
            raise ValueError(
                f"checkpoint {folder!r} was made with {name}={before[name]!r}, this run has {name}={now[name]!r}: "
                "resume with the same settings, or start a new run from its weights."
            )


# ---- whole, or half-written ------------------------------------------------------------------------------------------------------


def folders(run: str | Path) -> list[Path]:
    """Returns the folders of checkpoints in a run's folder, the latest step first.

    Args:
        run: the ``output_dir`` of a training, which need not exist.
    """
    found = [(int(m[1]), path) for path in Path(run).glob("checkpoint-*") if (m := _FOLDER.fullmatch(path.name)) and path.is_dir()]
    return [path for _, path in sorted(found, reverse=True)]


def holds_weights(folder: str | Path) -> bool:
    """Returns whether a folder holds the weights of a model, in one of the Trainer's formats.

    Args:
        folder: a path, which need not exist.
    """
    return any(any(Path(folder).rglob(pattern)) for pattern in _WEIGHTS)


def is_half(folder: Path) -> bool:
    """Returns whether a checkpoint was being written, or removed, when its process was killed: nobody can go on from it.

    Args:
        folder: of the checkpoint.
    """
    there = [TRAINER_STATE, *(_marked(folder) or ())]
    return not all((folder / name).is_file() for name in there)


def mark(trainer: Any, folder: str) -> None:
    """Writes which files the checkpoint has so far and how large they are, once every process has written its own.

    Args:
        trainer: that saves.
        folder: of the checkpoint.
    """
    trainer.accelerator.wait_for_everyone()
    if trainer.args.should_save:
        top = [*Path(folder).iterdir()]
        inner = [path for path in top if path.name == FOLDER or PARTS.fullmatch(path.name)]
        found = [*top, *(path for own in inner for path in own.rglob("*"))]
        names = sorted(p for p in found if p.is_file() and p.name not in (MARK, TRAINER_STATE))
        files = {p.relative_to(folder).as_posix(): p.stat().st_size for p in names if not p.name.endswith(".unfinished")}
        write_json(os.path.join(folder, MARK), {"files": files, "processes": trainer.args.world_size})


@contextmanager
def saving(trainer: Any, trial: Any) -> Iterator[None]:
    """While the Trainer saves a checkpoint: one of an earlier run is not taken for it, and a full disk is told in one line.

    Args:
        trainer: that saves.
        trial: of a hyperparameter search, None without one.

    Raises:
        OSError: where the files cannot be written.
    """
    run = trainer._get_output_dir(trial=trial)
    folder = Path(run) / f"checkpoint-{trainer.state.global_step}"
    if trainer.args.should_save:  # half over an earlier one's files it must not look whole
        for name in (TRAINER_STATE, MARK):
            (folder / name).unlink(missing_ok=True)
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and not DISK_FULL.search(str(error)):
            raise
        whole = next((path for path in folders(run) if path != folder and flaw(trainer, path) is None), None)
        rest = f"resume from {str(whole)!r}" if whole is not None else "start again"
        reason = " ".join(str(error).split())[:150]
        raise OSError(f"checkpoint {str(folder)!r} could not be written ({reason}): make room on the disk and {rest}.") from error


def flaw(trainer: Any, folder: str | Path, robust: bool = True) -> str | None:
    """Returns what a checkpoint lacks for a training to go on from it as if it had never stopped, None where it is whole.

    Args:
        trainer: that is to resume.
        folder: of the checkpoint, with weights or without.
        robust: whether a method is named, whose state must be there.
    """
    folder = Path(folder)
    try:
        state = json.loads((folder / TRAINER_STATE).read_text(encoding="utf-8"))
        if (wrong := _odd_entry(state, _FOLDER.fullmatch(folder.name))) is not None:
            return f"{TRAINER_STATE} is damaged: {wrong}={plain(repr(state[wrong]), 40)}"
    except FileNotFoundError:
        return f"{TRAINER_STATE}, the last file of a checkpoint, is missing"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return f"{TRAINER_STATE} is damaged"
    if not trainer.is_deepspeed_enabled and not holds_weights(folder):
        return "the weights are missing"
    needed = needed_files(trainer, folder)
    needed += [STATE_FILE] if robust and (folder / MARK).is_file() else []
    for name in needed:
        if not (folder / name).is_file():
            return f"{name} is missing" + why_missing(name, folder, state_kind(trainer))
    sizes = _marked(folder)
    if sizes is not None:
        now = {name: (folder / name).stat().st_size if (folder / name).is_file() else None for name in sizes}
        wrong = next((name for name, size in sizes.items() if now[name] != size), None)
        if wrong is not None:
            return f"{wrong} is " + (
                "missing" if now[wrong] is None else f"damaged: {now[wrong]} bytes where {sizes[wrong]} were saved"
            )
    return next((f"{path.name} is damaged" for path in sorted(folder.iterdir()) if path.name != MARK and not _readable(path)), None)


def _odd_entry(state: Mapping[str, Any], of_folder: re.Match[str] | None) -> str | None:
    """The first entry of the Trainer's state that cannot be what the Trainer wrote, None where there is none."""
    whole = ("global_step", "max_steps", "num_train_epochs", "num_input_tokens_seen")
    for name in ("epoch", "total_flos", *whole):
        value = state.get(name, 0)
        if not isinstance(value, int if name in whole else int | float) or isinstance(value, bool) or not value >= 0:
            return name
    kinds = {"log_history": list, "stateful_callbacks": dict}
    for name, kind in kinds.items():
        value = state.get(name, kind())
        if not isinstance(value, kind) or any(
            not isinstance(row, dict | list) for row in (value if kind is list else value.values())
        ):
            return name
    return "global_step" if of_folder is not None and state["global_step"] != int(of_folder[1]) else None


def _marked(folder: Path) -> dict[str, int] | None:
    """The files and sizes of the mark, None without a readable one: an earlier version or the plain Trainer wrote none."""
    try:
        files = json.loads((folder / MARK).read_text(encoding="utf-8"))["files"]
        return {str(name): int(size) for name, size in files.items() if _INSIDE.fullmatch(name)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


@contextmanager
def reading(folder: str | None) -> Iterator[None]:
    """Damage that shows when torch reads a file of a checkpoint, and weights of another model, are told as that.

    Args:
        folder: of the checkpoint, None for none.

    Raises:
        ValueError: for a damaged file, and for weights of other sizes.
    """
    try:
        yield
    except (RuntimeError, pickle.UnpicklingError, EOFError, zipfile.BadZipFile) as error:
        if (other := re.search(r"size mismatch for [^\n]*", str(error))) is not None:
            raise ValueError(
                f"checkpoint {folder!r} holds the weights of another model ({other[0].rstrip('.')}): resume with the model and the "
                "data of the run, or start a new run in another folder."
            ) from error
        if isinstance(error, RuntimeError) and not re.search(r"PytorchStreamReader|zip|archive|corrupt", str(error)):
            raise
        reason = " ".join(str(error).split())[:150]
        raise ValueError(f"checkpoint {folder!r} is damaged ({reason}): resume from another one, or start a new run.") from error


def _readable(path: Path) -> bool:
    """Whether a file of weights or states is as long as its own table of contents says, and JSON is JSON."""
    if path.suffix == ".json":
        try:
            return isinstance(json.loads(path.read_text(encoding="utf-8")), dict | list)
        except (OSError, ValueError, RecursionError):
            return False
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, framework="pt"):
                return True
        except (SafetensorError, OSError):
            return False
    return path.suffix not in (".pt", ".pth", ".bin") or zipfile.is_zipfile(path)


def steps_done(checkpoint: str | Path) -> int:
    """Returns the optimizer steps that a checkpoint has behind it.

    Args:
        checkpoint: its folder.
    """
    return int(json.loads((Path(checkpoint) / TRAINER_STATE).read_text(encoding="utf-8"))["global_step"])


def to_resume_from(trainer: Any, given: Any, robust: bool = True) -> Any:
    """Returns the checkpoint that ``train(resume_from_checkpoint=given)`` goes on from; of what is none the Trainer tells.

    Args:
        trainer: that is to resume.
        given: a folder; True for the newest whole one of the output folder; None or False for none.
        robust: whether a method is named.

    Raises:
        ValueError: for a checkpoint that is not whole, with the newest one that is; for one of other processes under DeepSpeed.
    """
    if not given:
        return given
    found = _to_resume_from(trainer, given, robust)
    before = saved_by(Path(found), trainer.args.world_size) if found is not True else trainer.args.world_size
    if before != trainer.args.world_size and trainer.is_deepspeed_enabled and not _universal(trainer):
        raise ValueError(
            f"checkpoint {str(found)!r} was saved by {before} process{'es' if before > 1 else ''} under DeepSpeed, now there are "
            f"{trainer.args.world_size}: start {before}, or make it a universal one (ds_to_universal.py, load_universal)."
        )
    if before != trainer.args.world_size and trainer.is_world_process_zero():
        logger.warning(
            f"checkpoint {str(found)!r} was saved by {before} process{'es' if before > 1 else ''}, now there are "
            f"{trainer.args.world_size}: with as many samples a step it is the same run but for dropout and random transforms."
        )
    return found


def _universal(trainer: Any) -> bool:
    """Whether DeepSpeed is told to read a checkpoint that any number of processes can go on from."""
    config = getattr(trainer.accelerator.state.deepspeed_plugin, "deepspeed_config", {})
    return bool(config.get("checkpoint", {}).get("load_universal", False))


def _to_resume_from(trainer: Any, given: Any, robust: bool) -> Any:
    run = Path(trainer.args.output_dir) if given is True else Path(given).parent
    there = folders(run)
    if given is not True and not holds_weights(given) and Path(given) not in there:
        return given
    flaws = {path: flaw(trainer, path, robust) for path in (there if given is True else [Path(given), *there])}
    whole = next((path for path, reason in flaws.items() if reason is None), None)
    if given is True and whole is not None:
        for path in there[: there.index(whole)]:
            logger.warning(f"checkpoint {str(path)!r} is incomplete ({flaws[path]}): going on from {whole.name}.")
        return str(whole)
    first = there[0] if given is True and there else Path(str(given))
    if given is True and not there or flaws[first] is None:
        return given
    mend = f"resume from {str(whole)!r}, the newest whole one" if whole is not None else "no whole one is left, start a new run"
    raise ValueError(f"checkpoint {str(first)!r} is incomplete ({flaws[first]}): {mend}.")


# ---- weights ---------------------------------------------------------------------------------------------------------------------


def load_renamed_weights(folder: str, model: nn.Module) -> None:
    """Loads the weights that the Trainer's own resume leaves out (transformers 5.23: every encoder layer of a ViT).

    ``save_pretrained`` writes the hub's names and ``from_pretrained`` translates them back; the Trainer's resume matches them
    as they are and only warns. Where names differ the weights are read again through ``from_pretrained``.
    """
    if not isinstance(model, PreTrainedModel) or _names_in(folder) <= set(model.state_dict()):
        return
    dtype = next(model.parameters()).dtype
    saved = type(model).from_pretrained(folder, config=model.config, dtype=dtype)
    model.load_state_dict(saved.state_dict())


def _names_in(folder: str) -> set[str]:
    index = os.path.join(folder, "model.safetensors.index.json")
    if os.path.isfile(index):
        with open(index) as file:
            return set(json.load(file)["weight_map"])
    single = os.path.join(folder, "model.safetensors")
    if not os.path.isfile(single):
        return set()
    with safetensors.safe_open(single, framework="pt") as handle:
        return set(handle.keys())
