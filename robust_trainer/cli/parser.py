"""The parser of every command: options from a YAML or JSON file and from flags, which win; mistakes are one-line errors."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from transformers import HfArgumentParser, TrainingArguments

from ..config import RobustConfig, read_method_settings
from ..methods.registry import load_plugins
from ..methods.settings import SETTINGS, parse_assignments
from ..reporting.results import check_results
from ..reporting.suggest import did_you_mean
from ..reporting.untrusted import read_json
from .config_file import read_config

#: The options of TrainingArguments that --help shows; all of them can be given.
SHOWN = (
    "output_dir", "num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "optim", "weight_decay",
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "bf16", "use_cpu",
    "eval_strategy", "save_strategy", "dataloader_num_workers", "disable_tqdm", "report_to", "seed", "resume_from_checkpoint",
)  # fmt: skip

#: How options are called elsewhere, in letters too far from their names to be guessed.
USUAL_NAMES = {
    "epoch": "num_train_epochs", "epochs": "num_train_epochs", "num_epochs": "num_train_epochs", "lr": "learning_rate",
    "batch_size": "per_device_train_batch_size", "train_batch_size": "per_device_train_batch_size", "data": "dataset",
    "data_dir": "dataset", "train_dir": "dataset", "train_file": "dataset", "dataset_name": "dataset", "label": "label_column",
    "label_column_name": "label_column", "image_column_name": "image_column",
    "text_column_name": "text_column", "max_seq_length": "max_length", "max_len": "max_length", "model_name": "model",
    "model_name_or_path": "model", "resume": "resume_from_checkpoint", "overwrite_output_dir": "overwrite",
}  # fmt: skip


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """One spelling of each option, and no list of dozens of choices."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return f"{action.option_strings[0]} {'VALUE ...' if action.nargs == '+' else 'VALUE'}"

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class Parser(HfArgumentParser):
    """An argument parser whose mistakes are one-line ``ValueError``s."""

    def format_help(self) -> str:
        """The help, with our own options first and the usual ones of TrainingArguments."""
        trainers = {f.name for f in fields(TrainingArguments)} - set(SHOWN)
        if not any(issubclass(t, TrainingArguments) for t in self.dataclass_types):
            trainers = set()
        for action in self._actions:
            if action.dest in trainers or action.option_strings[0].startswith("--no_"):
                action.help = argparse.SUPPRESS
        if trainers:
            self.epilog = f"{self.epilog or ''} All other options of transformers.TrainingArguments can be given as well."
        self._action_groups.sort(key=lambda group: group.title == "options")
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Raises ``ValueError`` with the message, in the words of the other ones."""
        found = re.fullmatch(r"argument (--\w+)\S*: (.*)", message, re.DOTALL)
        raise ValueError(message if found is None else _mistaken(*found.groups()))

    @property
    def options(self) -> dict[str, argparse.Action]:
        """The option of each name, as a file names it."""
        known, every = set(self.known()), self._option_string_actions
        return {name: every[f"--{name}"] for name in known if f"--{name}" in every}

    def known(self) -> list[str]:
        """Returns the names of all options."""
        names = {f.name for t in self.dataclass_types for f in fields(t) if f.init}
        return sorted(names | ({"set", "plugins"} if self.takes_methods else set()))

    @property
    def takes_methods(self) -> bool:
        """Whether the command trains by a method, whose settings ``--set`` gives and which ``--plugins`` may define."""
        return any(issubclass(t, RobustConfig) for t in self.dataclass_types)


def make_parser(command: str, types: Iterable[Any], about: str, first: str = "config.yaml") -> Parser:
    """Returns the parser of a command.

    Args:
        command: Its name.
        types: Dataclasses whose fields are the options.
        about: What it does, for ``--help``.
        first: What may stand before all options.
    """
    usage = f"robust-trainer {command} [{first}] [--option value ...]"
    parser = Parser(
        list(types), prog=f"robust-trainer {command}", usage=usage, description=about, allow_abbrev=False, formatter_class=_Help
    )
    if parser.takes_methods:
        group = parser.add_argument_group("method")
        group.add_argument("--set", action="append", help="Another setting of the method, as rate_decay_share=0.3; repeatable.")
        group.add_argument("--plugins", nargs="+", help="Python files or modules that register scores, rules, objectives, methods.")
    return parser


def parse(
    parser: Parser, argv: Sequence[str], *, defaults: Callable[[argparse.Namespace], Mapping[str, Any]] | None = None
) -> tuple[Any, ...]:
    """Returns the options, from a YAML or JSON file (a leading argument without dashes) and from flags, which win.

    A flag with the value ``null`` takes the option's default in place of the file's value.

    Args:
        parser: Of `make_parser`.
        argv: The words after the command's name.
        defaults: Those that depend on what is given: of the words, before they are read as dataclasses.

    Raises:
        ValueError: In one line, naming the unknown key, the value that does not fit, or an option with two values.
    """
    argv = list(argv)
    if argv and not argv[0].startswith("-"):
        _check_once(parser, argv[1:])
        of_file = read_config(argv[0], parser.options, lambda key: _unknown_option(key, parser.known()))
        argv = _without_defaults(parser, of_file, argv[1:])
    else:
        _check_once(parser, argv)
    words, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ValueError(_unknown_option(unknown[0], parser.known()))
    if defaults is not None:
        parser.set_defaults(**defaults(words))
    if parser.takes_methods:
        load_plugins(words.plugins or ())
        if words.set:
            others = read_method_settings(words.method_settings) or {}
            argv.append(f"--method_settings={json.dumps({**others, **parse_assignments(words.set)})}")
    try:
        return parser.parse_args_into_dataclasses(argv, look_for_args_file=False)[: len(list(parser.dataclass_types))]
    except (TypeError, AttributeError, LookupError) as error:  # TrainingArguments' own, of configurations written as JSON
        raise ValueError(
            f"the options cannot be taken together ({type(error).__name__}: {error}): look at the ones in JSON."
        ) from error


def _options_in(parser: Parser, argv: Sequence[str]) -> list[tuple[argparse.Action, str, str, slice]]:
    """The options that words give: which, as it is written, its value, and the words."""
    starts = [i for i, word in enumerate(argv) if word.startswith("--")]
    found = []
    for start, end in zip(starts, [*starts[1:], len(argv)]):
        name, equals, value = argv[start].partition("=")
        if (option := parser._option_string_actions.get(name)) is not None:
            found.append(
                (option, name, value if equals else " ".join(argv[start + 1 : end]), slice(start, start + 1 if equals else end))
            )
    return found


def _check_once(parser: Parser, argv: Sequence[str]) -> None:
    """Raises ``ValueError`` for an option that the words give two values; `--set` may be repeated."""
    given: dict[str, tuple[str, str]] = {}
    for option, name, said, _ in _options_in(parser, argv):
        before = given.setdefault(option.dest, (name, said))
        if before != (name, said) and not isinstance(option, argparse._AppendAction):
            one, two = (" ".join(words).strip() for words in (before, (name, said)))
            raise ValueError(f"{before[0]} is given twice, {one!r} and {two!r}: give it once.")


def _without_defaults(parser: Parser, of_file: list[str], argv: Sequence[str]) -> list[str]:
    """The words of a file and those typed, without the options that are typed as ``null``, which take their defaults."""
    null = {option.dest for option, _, said, _ in _options_in(parser, argv) if said == "null"}
    words: list[str] = []
    for part in (of_file, list(argv)):
        for option, _, _, place in reversed(_options_in(parser, part)):
            if option.dest in null:
                del part[place]
        words += part
    return words


#: What argparse calls a type, in words.
_TYPES: Mapping[str, str] = {"int": "whole number", "float": "number"}


def _mistaken(option: str, reason: str) -> str:
    """Argparse's reason why an option cannot be read, as what was given and what to give."""
    if found := re.fullmatch(r"invalid (\w+) value: (.*)", reason, re.DOTALL):
        kind, value = found.groups()
        return f"{option} {value} is no {_TYPES.get(kind, f'value that it takes ({kind})')}: give one, or leave it out."
    if found := re.fullmatch(r"invalid choice: (.*) \(choose from (.*)\)", reason, re.DOTALL):
        value, choices = found.groups()
        hint = did_you_mean(value.strip("'"), choices.replace("'", "").split(", "))
        return f"{option} {value} is unknown: {hint}choose one of {choices}."
    if found := re.match(r"Truthy value expected: got (.*) but expected", reason, re.DOTALL):
        return f"{option} {found[1]!r} is neither true nor false: give one of them."
    if reason.startswith("expected"):
        return f"{option} has no value ({reason}): give one behind it."
    return f"{option}: {reason}"


def _unknown_option(word: str, known: Sequence[str]) -> str:
    """The message about an option, or a key of a file, that is none of the known ones."""
    if word.startswith("--"):
        word = word.split("=")[0]
    name = word.lstrip("-").replace("-", "_")
    if name in SETTINGS and "set" in known:
        return f"unknown option {word!r}: give --set {name}=..., or {name} under method_settings in a file."
    dashes = word[: len(word) - len(word.lstrip("-"))]
    if (meant := USUAL_NAMES.get(name)) in known:
        return f"unknown option {word!r}: did you mean '{dashes}{meant}'?"
    hint = did_you_mean(name, known, "'" + dashes + "{}'").strip() or "see --help for the options."
    return f"unknown option {word!r}: {hint}"


def parse_for_run(parser: Parser, argv: Sequence[str], kinds: Sequence[Any]) -> tuple[dict[str, Any] | None, bool, tuple[Any, ...]]:
    """Returns the run's results.json (None without one), whether its data is known, and the options of a command on a run.

    Args:
        parser: Of `make_parser`, with an option ``run``.
        argv: The words after the command's name; a leading one without dashes is the run's folder.
        kinds: The options that default to those of the run.
    """
    argv = list(argv)
    if argv and not argv[0].startswith("-"):
        argv = [f"--run={argv[0]}", *argv[1:]]
    given = parser.parse_known_args(argv)[0]
    content, known = stored(given.run)
    defaults = {f.name: known[f.name] for kind in kinds for f in fields(kind) if f.name in known}
    if any(word.split("=")[0] == "--corrupt" for word in argv) and given.corrupt != defaults.get("corrupt"):
        group = next(kind for kind in kinds if any(f.name == "corrupt" for f in fields(kind)))
        for f in fields(group):
            defaults.pop(f.name, None)  # what the run's corruption was given says nothing of another one
    parser.set_defaults(**defaults)
    data_known = bool(known) or any(word.split("=")[0] == "--dataset" for word in argv)
    return content, data_known, parse(parser, argv)


def stored(run: str) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The run's results.json and the options in it; None and {} where there is none, or a script's own.

    Args:
        run: Folder of a finished training.

    Raises:
        ValueError: For one that is damaged.
    """
    path = Path(run) / "results.json"
    try:
        content = read_json(path, "train again, or take the file away")
    except OSError:
        return None, {}
    if "runs" not in content:
        return None, {}
    check_results(content, str(path))
    for name, value in content["options"].items():
        if not isinstance(value, str | int | float | None) and not (
            isinstance(value, list) and all(isinstance(word, str) for word in value)
        ):
            raise ValueError(f"{str(path)!r} is damaged (options.{name} is a {type(value).__name__}): train again.")
    return content, content["options"]
