"""What a sample is: one object a kind of problem (`base.Problem`), all of them in ``PROBLEMS``."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from .base import Problem
from .multi_label import MULTI_LABEL
from .regression import REGRESSION
from .single_label import SINGLE_LABEL
from .unlabelled import UNLABELLED


def _found() -> list[Problem]:
    """The kinds in the files of this folder."""
    modules = [import_module(f"{__name__}.{file.name}") for file in iter_modules(__path__)]
    return [value for module in modules for value in vars(module).values() if isinstance(value, Problem)]


#: Every kind of problem by its name. Where a kind has labels, the name is what ``problem_type`` may be.
PROBLEMS: dict[str, Problem] = {problem.name: problem for problem in (SINGLE_LABEL, REGRESSION, MULTI_LABEL, UNLABELLED, *_found())}
#: What ``problem_type`` may be.
PROBLEM_TYPES: tuple[str, ...] = tuple(name for name, problem in PROBLEMS.items() if problem.labelled)

__all__ = ["MULTI_LABEL", "PROBLEMS", "PROBLEM_TYPES", "REGRESSION", "SINGLE_LABEL", "UNLABELLED", "Problem"]
