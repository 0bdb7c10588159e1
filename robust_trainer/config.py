"""RobustConfig: TrainingArguments plus the name of a method and its settings."""

from __future__ import annotations

import functools
import inspect
import os
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from transformers import TrainingArguments

from .methods.conflicts import check_settings
from .methods.help import field_help, fields_help
from .methods.recipe import Recipe
from .methods.settings import FIELDS, SETTINGS, GivenTwice, parse_json, read_settings, settings_of
from .methods.table import get_method
from .models.saved_networks import check_export
from .models.spectral import Cap, cap_of
from .problems import PROBLEM_TYPES
from .reporting.suggest import did_you_mean

_Config = TypeVar("_Config")


def _setting(name: str) -> Any:
    """A field whose help comes from the settings' table."""
    return field(default=None, metadata={"help": field_help(name)})


def _says_what_was_meant(cls: type[_Config]) -> type[_Config]:
    """A dataclass whose constructor names the field that an unknown keyword meant, where Python says "unexpected" alone."""
    init = cls.__init__
    names = [*inspect.signature(init).parameters][1:]

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        unknown = next((name for name in kwargs if name not in names), None)
        if unknown is not None:
            raise ValueError(_unknown(cls.__name__, unknown, kwargs[unknown], names))
        init(self, *args, **kwargs)

    cls.__init__ = checked  # type: ignore[method-assign]
    return cls


def _with_fields(cls: type[_Config]) -> type[_Config]:
    """A class with a field for each row of the settings' table that is one.

    Those written out in the class are what editors complete and type checkers know.
    """
    for name in FIELDS:
        if name not in cls.__annotations__:
            cls.__annotations__[name] = SETTINGS[name].annotation()
            setattr(cls, name, _setting(name))
    for name in SETTINGS:
        if name not in FIELDS:  # no field, but what is set on the arguments later (by a search's trial) counts
            setattr(cls, name, None)
    return cls


@_says_what_was_meant
@dataclass
@_with_fields
class RobustConfig(TrainingArguments):
    """`transformers.TrainingArguments` plus a method and its settings.

    A setting left at None has the method's own value (`robust_trainer.METHODS[method].settings`). Settings that are no field go
    through ``method_settings``; all are in ``docs/reference/settings.md``.

    Args:
        method: the robust method, e.g. ``prl``, ``prl+trades``, ``erat``; None or ``none``: exactly the plain Trainer.
        method_settings: the method's other settings, a dict or its JSON: ``{"rate_decay_share": 0.3}``.
        problem_type: one of `robust_trainer.problems.PROBLEM_TYPES`, as ``regression``; None: the model's config's.
        ledger_predictions: keep each sample's mean predicted probabilities in the ledger, 4 bytes per class and sample.
        export: what a method of several networks saves as the model: ``best``, the network of the lower loss on the samples that
            the run trusts; ``peer0``, ``peer1``; ``average``, the mean of the weights; ``ensemble``, all as one `PeerModel`, which
            this package alone opens. The other networks are saved beside it.
        image_mean: per-channel mean of the input normalisation; None: the image processor's.
        image_std: per-channel standard deviation of the input normalisation; None: the image processor's.
    """

    method: str | None = field(default=None, metadata={"help": "Robust method, e.g. auto; none: exactly the plain Trainer."})
    noise_rate: float | str | None = _setting("noise_rate")
    drop_schedule: str | None = _setting("drop_schedule")
    drop_ramp_epochs: float | None = _setting("drop_ramp_epochs")
    drop_ramp_steps: int | None = _setting("drop_ramp_steps")
    per_class: bool | None = _setting("per_class")
    memory: str | None = _setting("memory")
    rebalance: bool | None = _setting("rebalance")
    warmup_epochs: float | None = _setting("warmup_epochs")
    num_networks: int | None = _setting("num_networks")
    looks: int | None = _setting("looks")
    relabel_from: float | None = _setting("relabel_from")
    find_patterns: bool | None = _setting("find_patterns")
    objective: str | None = _setting("objective")
    eps: float | str | None = _setting("eps")
    step_size: float | str | None = _setting("step_size")
    steps: int | None = _setting("steps")
    norm: str | None = _setting("norm")
    scope: str | None = _setting("scope")
    random_start: bool | None = _setting("random_start")
    beta: float | None = _setting("beta")
    freeze_backbone: bool | None = _setting("freeze_backbone")
    spectral_cap: float | None = _setting("spectral_cap")
    method_settings: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "The method's other settings as JSON, e.g. '{\"rate_decay_share\": 0.3}'."}
    )
    problem_type: str | None = field(
        default=None,
        metadata={"help": f"One of {', '.join(PROBLEM_TYPES)}. Default: the model's config."},
    )
    ledger_predictions: bool = field(
        default=False,
        metadata={"help": "Keep each sample's mean predicted probabilities in the ledger, 4 bytes per class and sample."},
    )
    export: str = field(
        default="best",
        metadata={"help": "What a method of several networks saves as the model: best, peer0, peer1, average, or ensemble."},
    )
    image_mean: list[float] | None = field(
        default=None, metadata={"help": "Per-channel mean of the input normalisation; default: the image processor's."}
    )
    image_std: list[float] | None = field(
        default=None, metadata={"help": "Per-channel std of the input normalisation; default: the image processor's."}
    )

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "method_settings"]

    def __post_init__(self) -> None:
        self.method_settings = read_method_settings(self.method_settings)
        for name in FIELDS:
            setattr(self, name, SETTINGS[name].read(getattr(self, name)))
        recipe = self.recipe()
        check_export(self.export)
        if self.problem_type is not None and self.problem_type not in PROBLEM_TYPES:
            raise ValueError(f"problem_type={self.problem_type!r} is unknown: choose one of {', '.join(PROBLEM_TYPES)}.")
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, list | tuple) and all(isinstance(v, int | float) for v in value)):
                raise ValueError(f"{name}={value!r} must be a list of numbers, one per channel: for one channel [{value!r}].")
        if recipe is not None and self.output_dir is not None:
            check_writable(self.output_dir)
        super().__post_init__()

    def given_settings(self) -> dict[str, Any]:
        """Returns the settings given here, in fields and in ``method_settings``.

        Raises:
            ValueError: for a setting given in both, with two values.
        """
        fields = {name: row.read(value) for name, row in SETTINGS.items() if (value := getattr(self, name)) is not None}
        return merge_settings(fields, read_method_settings(self.method_settings) or {}, "as a field", "in method_settings")

    def switches(self) -> tuple[bool, Cap | None]:
        """Returns ``freeze_backbone`` and the cap of spectral norms as given here, whatever the method."""
        settings = self.given_settings()
        return bool(settings.get("freeze_backbone")), cap_of(settings)

    def recipe(self) -> Recipe | None:
        """Returns the named method with the settings given here; None without a method.

        Raises:
            ValueError: in one line, for an unknown method and for settings that it does not take or that are out of range.
        """
        return find_recipe(self.method, self.given_settings())


_AFTER = "        method_settings: the"
RobustConfig.__doc__ = (RobustConfig.__doc__ or "").replace(_AFTER, f"{fields_help()}\n{_AFTER}", 1)


def find_recipe(method: str | None, settings: Mapping[str, Any]) -> Recipe | None:
    """Returns the method of that name with these settings; None without a method.

    Args:
        method: a method's name; None or ``none`` for none.
        settings: those that are not to have the method's own values. Without a method only those that any training takes.

    Raises:
        ValueError: for an unknown method, and for settings that it does not take, that are out of range or have no effect.
    """
    if method is not None and method != "none":
        return get_method(method)(**settings)
    for name, value in settings.items():
        if name not in settings_of("anywhere"):
            raise ValueError(f"{name}={value!r} has no effect without a method: set method=..., or drop {name}.")
    if settings:
        check_settings(settings, settings, "auto", ("anywhere",))
    return None


def recipe_from(
    args: Any, recipe: Recipe | str | None, method: str | None, settings: Mapping[str, Any], keywords: Collection[str] = ()
) -> Recipe | None:
    """Returns the recipe in force for a trainer: its own, that of the method it names, or that of its arguments; None without one.

    Args:
        args: a `RobustConfig`, other `TrainingArguments`, or None.
        recipe: the trainer's keyword: a recipe, or a method's name.
        method: the trainer's keyword: a method's name.
        settings: the trainer's other keywords, settings of the method.
        keywords: the names that the trainer takes beside settings, for the message about one that is neither.

    Raises:
        ValueError: for a keyword that is no setting, for a method named twice, and for settings without a method.
    """
    for name, value in settings.items():
        if name not in SETTINGS:
            raise ValueError(_unknown("RobustTrainer", name, value, keywords))
    if isinstance(recipe, str):
        if method is not None and method != recipe:
            raise ValueError(f"recipe={recipe!r} and method={method!r} name two methods: give one of them.")
        method, recipe = recipe, None
    theirs = args.method if isinstance(args, RobustConfig) and args.method != "none" else None
    if recipe is not None:
        if method is not None or theirs is not None:
            where = f"method={method!r}" if method is not None else f"method={theirs!r} in the arguments"
            raise ValueError(f"{where} and recipe={recipe.name!r}: give one of them.")
        if settings:
            name, value = next(iter(settings.items()))
            raise ValueError(f"{name}={value!r} has no effect beside recipe={recipe.name!r}: build the recipe with it.")
        return recipe
    if method is not None and theirs is not None and method != theirs:
        raise ValueError(f"method={theirs!r} in the arguments and method={method!r} in the trainer: give one of them.")
    if method is None and theirs is None:
        for name, value in settings.items():
            mend = f"give RobustConfig({name}={value!r})" if name in settings_of("anywhere") else "set method=..."
            raise ValueError(f"{name}={value!r} has no effect without a method: {mend}, or drop {name}.")
    in_arguments = args.given_settings() if isinstance(args, RobustConfig) else {}
    merged = merge_settings(in_arguments, read_settings(settings), "in the arguments", "in the trainer")
    return find_recipe(method if method is not None else theirs, merged)


def keywords_after(mixin: type, cls: type) -> list[str]:
    """Returns the keyword arguments of the classes that follow a mixin among a class's bases.

    Args:
        mixin: whose own keywords do not count.
        cls: a class built with it.
    """
    following = cls.__mro__[cls.__mro__.index(mixin) + 1 : -1]
    parameters = [p for c in following if "__init__" in vars(c) for p in inspect.signature(vars(c)["__init__"]).parameters.values()]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return list(dict.fromkeys(p.name for p in parameters if p.kind in named and p.name != "self"))


def frozen_and_capped(args: Any, recipe: Recipe | None) -> tuple[bool, Cap | None]:
    """Returns whether the head alone is trained, and the cap of spectral norms: of the method in force, else of the arguments.

    Args:
        args: a `RobustConfig`, or other `TrainingArguments`.
        recipe: the method in force, None without one.

    Raises:
        ValueError: for two caps that differ.
    """
    freeze_backbone, cap = args.switches() if isinstance(args, RobustConfig) else (False, None)
    if recipe is None:
        return freeze_backbone, cap
    if cap is not None and recipe.spectral is not None and recipe.spectral != cap:
        raise ValueError(f"spectral_cap={cap.k!r} in the arguments and {recipe.spectral.k!r} in the recipe: give one of them.")
    return recipe.freeze_backbone or freeze_backbone, recipe.spectral or cap


def merge_settings(first: Mapping[str, Any], second: Mapping[str, Any], here: str, there: str) -> dict[str, Any]:
    """Returns the settings of both.

    Args:
        first: settings.
        second: others.
        here: where the first were given, for the message.
        there: where the second were given.

    Raises:
        ValueError: for a setting with two values.
    """
    for name in first.keys() & second.keys():
        if first[name] != second[name]:
            raise ValueError(f"{name}={first[name]!r} {here} and {name}={second[name]!r} {there}: give one of them.")
    return {**first, **second}


def read_method_settings(value: Any) -> dict[str, Any] | None:
    """Returns ``method_settings`` as a dict of values; None for nothing.

    Args:
        value: a dict, its JSON, or None.

    Raises:
        ValueError: for what is neither, for unknown names, and for texts that stand for no size in pixels.
    """
    if isinstance(value, str):
        try:
            value = parse_json(value) if value.strip() else None
        except GivenTwice as error:
            raise ValueError(f"method_settings: {error}") from None
        except (ValueError, RecursionError):
            raise ValueError(f"method_settings={value!r} is no JSON: give for instance '{{\"rate_decay_share\": 0.3}}'.") from None
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ValueError(f"method_settings={value!r} must be a dict of settings: give for instance {{'rate_decay_share': 0.3}}.")
    return read_settings(value)


def _unknown(owner: str, name: str, value: Any, keywords: Collection[str]) -> str:
    """The message for a keyword that ``owner`` does not take."""
    if name in SETTINGS:
        return f"{owner} has no field {name!r}: give method_settings={{{name!r}: {value!r}}}."
    return f"{owner} takes no {name!r}: " + (
        did_you_mean(name, [*keywords, *SETTINGS]).strip() or "all settings are in docs/reference/settings.md."
    )


def check_writable(folder: str, option: str = "output_dir") -> None:
    """Refuses a folder that cannot be created or written; nothing is left there.

    Args:
        folder: a path, which need not exist.
        option: what it was given as, for the message.

    Raises:
        ValueError: in one line, with the first parent that exists.
    """
    if not folder.strip():
        raise ValueError(f"{option}={folder!r} is no folder: give one to write to.")
    probe = os.path.abspath(folder)
    try:
        while not _exists(probe):
            probe = os.path.dirname(probe)
        with tempfile.TemporaryFile(dir=probe) as file:
            file.write(b"0" * 4096)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        where = f"{option}={folder!r} is not writable ({probe}: {reason})"
        raise ValueError(f"{where}: choose a folder that you may write to.") from error


def _exists(path: str) -> bool:
    """Whether something is there, be it a link to nowhere; raises ``OSError`` where nothing can ever be there."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def space_settings(args: Any) -> dict[str, Any]:
    """Returns mean and std of the input normalisation as given in the arguments, None where they are not.

    Args:
        args: of any class.
    """
    return {"mean": getattr(args, "image_mean", None), "std": getattr(args, "image_std", None)}
