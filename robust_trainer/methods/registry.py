"""Scores, rules, objectives and methods of one's own, by name: in `RobustConfig`, in keywords, in YAML and on the command line.

What is registered is used as the built-in ones are: ``RobustConfig(method="prl", method_settings={"score": "my-score"})``. What
does not fit its protocol (`robust_trainer.types`) is refused here, with the method that is missing.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any

from ..losses.standard import OBJECTIVES
from ..selection.rules import RULES
from ..selection.scores import SCORES
from ..types import BatchRule, EpochRule, Objective, Score
from .method import Method
from .rules import BATCH_RULE, EPOCH_RULE, parameters_of
from .settings import SETTINGS
from .table import METHODS

_BUILT_IN = {"score": frozenset(SCORES), "objective": frozenset(OBJECTIVES), "rule": frozenset(RULES), "method": frozenset(METHODS)}


def register_score(name: str, score: Score) -> None:
    """Makes a score of one's own available as the setting ``score`` of every method that ranks or splits.

    Args:
        name: how settings call it.
        score: ``ForwardOutput -> (M, B)``, detached, higher is more suspicious (`robust_trainer.types.Score`).

    Raises:
        ValueError: for a built-in name, and for what cannot be called with a `ForwardOutput`.
    """
    _check_callable("score", name, score, ("output",))
    _register(SCORES, "score", name, score)


def register_objective(name: str, factory: Callable[[], Objective]) -> None:
    """Makes a loss on labels of one's own available as the setting ``objective``.

    Args:
        name: how settings call it.
        factory: a class or function that makes the loss, ``(ForwardOutput, targets) -> (M, B)`` (`robust_trainer.types.Objective`),
            without arguments. Its attribute ``problems`` names the problem types that the loss fits, without one single-label
            classification; its attribute ``settings`` the settings that it reads, with the parameters that they are.

    Raises:
        ValueError: for a built-in name, and for a factory that makes no such loss.
    """
    made = _make("objective", name, factory, {})
    _check_callable("objective", name, made, ("output", "targets"))
    _register(OBJECTIVES, "objective", name, factory)


def register_batch_rule(name: str, factory: Callable[..., BatchRule]) -> None:
    """Makes a rule that decides in every step available as the setting ``rule`` of every method that ranks or splits.

    Args:
        name: how settings call it.
        factory: a class or function that makes the rule (`robust_trainer.types.BatchRule`). Its parameters that are named as
            settings (``noise_rate``, ``per_class``, ...) get the method's values; all others need defaults.

    Raises:
        ValueError: for a parameter that is no setting and has no default, and for a rule without a method of the protocol.
    """
    _register_rule("batch_rule", name, factory, BATCH_RULE)


def register_epoch_rule(name: str, factory: Callable[..., EpochRule]) -> None:
    """Makes a rule that decides over the whole data set as an epoch starts available as the setting ``rule``.

    Args:
        name: how settings call it.
        factory: a class or function that makes the rule (`robust_trainer.types.EpochRule`); its parameters as for
            `register_batch_rule`.

    Raises:
        ValueError: for a parameter that is no setting and has no default, and for a rule without a method of the protocol.
    """
    _register_rule("epoch_rule", name, factory, EPOCH_RULE)


def register_method(row: Method) -> None:
    """Makes a method of one's own available by its name, in `METHODS` and in combinations (``mine+trades``, ``mine-simclr``).

    Args:
        row: its parts, its score and its numbers.

    Raises:
        ValueError: for a built-in name, for one that reads as a combination, and for settings that contradict each other.
    """
    if not isinstance(row, Method):
        raise ValueError(f"register_method: got a {type(row).__name__}: give a robust_trainer.methods.method.Method.")
    if "+" in row.name or row.name.endswith(("-simclr", "-simclr-sn")):
        raise ValueError(f"register_method: {row.name!r} reads as a combination of methods: leave + and -simclr out of the name.")
    row()
    _register(METHODS, "method", row.name, row)


def load_plugins(plugins: str | Iterable[str]) -> None:
    """Imports the modules that register scores, rules, objectives and methods.

    A file is imported once, however often it is named.

    Args:
        plugins: paths of Python files (``my_rules.py``), or dotted names of modules that can be imported.

    Raises:
        ValueError: in one line, for a file or module that is not there or fails.
    """
    for plugin in [plugins] if isinstance(plugins, str) else plugins:
        if not isinstance(plugin, str) or not plugin:
            raise ValueError(
                f"plugin {plugin!r} must be the path of a .py file or the name of a module: give for instance my_rules.py."
            )
        try:
            _load_file(Path(plugin)) if plugin.endswith(".py") else importlib.import_module(plugin)
        except ValueError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:150]
            raise ValueError(f"plugin {plugin!r} could not be loaded ({type(error).__name__}: {reason}): mend it.") from error


def _load_file(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"plugin {str(path)!r} does not exist: give the path of a .py file, or the name of a module.")
    place = str(path.resolve())
    if any(getattr(module, "__file__", None) == place for module in [*sys.modules.values()]):
        return
    name = f"robust_trainer_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # what it defines can be pickled by name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _register(table: MutableMapping[str, Any], kind: str, name: str, value: Any) -> None:
    if not isinstance(name, str) or not name.strip() or name in ("auto", "none"):
        raise ValueError(f"register_{kind}: {name!r} is no name: give a word, for instance 'my-{kind}'.")
    if name in _BUILT_IN[kind]:
        raise ValueError(f"register_{kind}: {name!r} is built in: choose another name.")
    table[name] = value


def _register_rule(kind: str, name: str, factory: Callable[..., Any], protocol: tuple[str, ...]) -> None:
    values = {row.name: row.default for row in SETTINGS.values()}
    rule = _make(kind, name, factory, values)
    missing = [method for method in protocol if not hasattr(rule, method)]
    if missing:
        what = f"{type(rule).__name__} has no {', '.join(missing)}"
        raise ValueError(f"register_{kind}({name!r}): {what}: see robust_trainer.types.{kind.title().replace('_', '')}.")
    _register(RULES, "rule", name, factory)


def _make(kind: str, name: str, factory: Callable[..., Any], values: dict[str, Any]) -> Any:
    """What the factory makes with those of ``values`` that it has parameters for."""
    if not callable(factory):
        raise ValueError(f"register_{kind}({name!r}): got a {type(factory).__name__}: give a class or a function that makes it.")
    parameters = parameters_of(factory)
    unknown = next((parameter for parameter, needed in parameters.items() if needed and parameter not in values), None)
    if unknown is not None:
        raise ValueError(f"register_{kind}({name!r}): its parameter {unknown!r} is no setting: give it a default.")
    return factory(**{parameter: values[parameter] for parameter in parameters if parameter in values})


def _check_callable(kind: str, name: str, value: Any, arguments: tuple[str, ...]) -> None:
    call = f"({', '.join(arguments)})"
    if isinstance(value, type):
        raise ValueError(f"register_{kind}({name!r}): got the class {value.__name__}: give an instance of it, {value.__name__}().")
    if not callable(value):
        raise ValueError(f"register_{kind}({name!r}): {type(value).__name__} has no __call__{call}.")
    try:
        inspect.signature(value).bind(*arguments)
    except TypeError as error:
        raise ValueError(f"register_{kind}({name!r}): {value!r} must be called as {call} ({error}).") from None
    except ValueError:  # a built-in function without a signature
        return
