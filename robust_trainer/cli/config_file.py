"""Options from a YAML or JSON file: each value as it stands there, so that no rule of YAML changes what was meant."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml
from transformers.hf_argparser import string_to_bool

#: Larger files hold no options; more values, and deeper ones, are not looked at.
LARGEST, MOST, DEEPEST = 200_000, 10_000, 20
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
#: Files of commands, which are no options.
_FOUND = ("results.json", "audit.json", "evaluation.json", "corruption.json", "config.json")
#: Endings of data sets, which are no options either.
_DATA = (".parquet", ".csv", ".tsv", ".jsonl", ".arrow", ".npz", ".gz")
_TAG = "tag:yaml.org,2002:"
_PLAIN = {_TAG + name for name in ("str", "null", "bool", "int", "float", "timestamp", "merge", "value")}


def read_config(path: str, options: Mapping[str, argparse.Action], unknown: Callable[[str], str]) -> list[str]:
    """Returns the file's settings as flags; null takes the default.

    A text is taken as it is written, also where YAML 1.1 would see something else in it: ``010`` is no octal number, ``1:30`` are
    no minutes, ``no`` is the word where a word is expected.

    Args:
        path: A .yaml or .json file.
        options: The option of each name that may stand in it.
        unknown: Makes the message about another name.

    Raises:
        ValueError: In one line, naming the file and the key: for what is no YAML, an unknown key, one that is given twice, and a
            value of a form that the option does not take.
    """
    if not path.endswith((".yaml", ".yml", ".json")):
        data = path.endswith(_DATA) or os.path.isdir(path)
        hint = f"a data set is --dataset {path}, and a .yaml file stands first" if data else "give a .yaml file first"
        raise ValueError(f"unexpected argument {path!r}: {hint}, then options as --name value.")
    root = _root(path)
    if root is None or (isinstance(root, yaml.ScalarNode) and root.tag == _TAG + "null"):
        return []
    if not isinstance(root, yaml.MappingNode):
        kind = "list" if isinstance(root, yaml.SequenceNode) else "text"
        raise ValueError(f"config={path!r} holds a {kind}, expected lines of the form 'name: value'.")
    reader = _Reader(path)
    flags: list[str] = []
    for key, node in reader.pairs(root):
        if key not in options and os.path.basename(path) in _FOUND:
            raise ValueError(f"config={path!r} holds what an earlier command found, expected options: give its folder instead.")
        if key not in options:
            raise ValueError(f"{path}: " + unknown(key))
        flags += _flags(f"--{key}", options[key], node, reader)
    return flags


def _root(path: str) -> yaml.Node | None:
    try:
        if (size := os.path.getsize(path)) > LARGEST:
            raise ValueError(f"config={path!r} has {size} bytes, expected a short file of options: is it the one that you mean?")
        with open(path, encoding="utf-8-sig") as file:
            return yaml.compose(file, Loader=yaml.SafeLoader)  # JSON is YAML
    except OSError as error:
        raise ValueError(f"config={path!r} could not be read ({error.strerror}): give an existing .yaml file.") from error
    except RecursionError:
        raise ValueError(f"config={path!r} is nested too deep: give lines of the form 'name: value'.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config={path!r} is no YAML ({' '.join(str(error).split())[:150]}): mend the file.") from error


def _flags(flag: str, option: argparse.Action, node: yaml.Node, reader: _Reader) -> list[str]:
    """The words that say the same on the command line."""
    if isinstance(node, yaml.ScalarNode):
        value = reader.scalar(node)
        if value is None:
            return []
        switch = isinstance(value, bool) and option.type is string_to_bool
        return [f"{flag}={str(value).lower() if switch else node.value}"]
    if isinstance(node, yaml.MappingNode):
        if not _takes_settings(option):
            raise ValueError(
                f"{reader.path}: {option.dest} holds a mapping of names, expected one value: write it behind the colon."
            )
        return [f"{flag}={json.dumps(reader.value(node))}"]
    items = [reader.value(item) for item in node.value]
    many = option.nargs == "+" or isinstance(option, argparse._AppendAction)
    if not many or not items or any(item is None or isinstance(item, list | dict) for item in items):
        expected = "one value" if not many else "at least one value, each a word or a number"
        raise ValueError(f"{reader.path}: {option.dest} holds a list of {len(items)}, expected {expected}: mend the line.")
    words = [item.value for item in node.value]
    if isinstance(option, argparse._AppendAction):
        return [f"{flag}={word}" for word in words]
    if dashed := [word for word in words if word.startswith("-") and not _NUMBER.fullmatch(word)]:
        raise ValueError(f"{reader.path}: {option.dest} holds {dashed[0]!r}, which would be read as an option: rename it.")
    return [flag, *words]


def _takes_settings(option: argparse.Action) -> bool:
    """Whether an option holds settings by name, which a file may write as a mapping."""
    return "dict" in str(option.type) or option.dest.endswith(("_settings", "_kwargs", "_config", "class_map", "deepspeed"))


class _Reader:
    """Values of a file's nodes, so many at most: a node can stand in many places."""

    def __init__(self, path: str):
        self.path, self.left = path, MOST

    def pairs(self, node: yaml.MappingNode) -> list[tuple[str, yaml.Node]]:
        """The keys as they are written, and their nodes."""
        seen: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"{self.path}: line {key.start_mark.line + 1} has a key that is no word: write name: value.")
            if key.value in seen:
                first = seen[key.value].start_mark.line + 1
                raise ValueError(
                    f"{self.path}: {key.value!r} is given twice, in lines {first} and {key.start_mark.line + 1}: give it once."
                )
            seen[key.value] = value
        return list(seen.items())

    def value(self, node: yaml.Node, depth: int = 0) -> Any:
        """What a node stands for; as JSON, and true, false, yes, no, on and off as switches."""
        self.left -= 1
        if self.left < 0 or depth > DEEPEST:
            raise ValueError(f"config={self.path!r} holds more than {MOST} values, or nested deeper than {DEEPEST}: mend the file.")
        if isinstance(node, yaml.MappingNode):
            return {key: self.value(child, depth + 1) for key, child in self.pairs(node)}
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, depth + 1) for child in node.value]
        return self.scalar(node)

    def scalar(self, node: Any) -> Any:
        """None, a switch, a number or the text."""
        text = node.value
        if node.tag not in _PLAIN:
            raise ValueError(
                f"{self.path}: line {node.start_mark.line + 1} has the tag {node.tag!r}, which is not read: write the value alone."
            )
        if node.style or node.tag == _TAG + "str" and not _NUMBER.fullmatch(text):
            return text
        if node.tag == _TAG + "null":
            return None
        if node.tag == _TAG + "bool":
            return text.lower() in ("true", "yes", "on")
        if _WHOLE.fullmatch(text):
            return int(text)
        return float(text) if _NUMBER.fullmatch(text) and not re.match(r"[-+]?0[0-9]", text) else text
