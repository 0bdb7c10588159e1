"""What a sample is: one object a kind of problem (`base.Problem`), all of them in ``PROBLEMS``."""

from __future__ import annotations

from .base import Problem
from .multi_label import MULTI_LABEL
from .regression import REGRESSION
from .single_label import SINGLE_LABEL
from .unlabelled import UNLABELLED

#: Every kind of problem by its name. Where a kind has labels, the name is what ``problem_type`` may be.
PROBLEMS: dict[str, Problem] = {problem.name: problem for problem in (SINGLE_LABEL, REGRESSION, MULTI_LABEL, UNLABELLED)}
#: What ``problem_type`` may be.
PROBLEM_TYPES: tuple[str, ...] = tuple(name for name, problem in PROBLEMS.items() if problem.labelled)

__all__ = ["MULTI_LABEL", "PROBLEMS", "PROBLEM_TYPES", "REGRESSION", "SINGLE_LABEL", "UNLABELLED", "Problem"]
