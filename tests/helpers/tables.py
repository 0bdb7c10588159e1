"""One test for a whole table: rows that go through the same lines need no case each."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch


def every_row(names: str | Sequence[str], rows: Iterable[Any]) -> Callable:
    """As ``pytest.mark.parametrize``, but one case that runs all rows, each in a folder of its own, and names those that fail."""
    keys = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
    table: Sequence[Any] = list(rows)

    def decorate(test: Callable) -> Callable:
        signature = inspect.signature(test)
        missing = set(keys) - set(signature.parameters)
        assert not missing and table, (test.__name__, missing)

        @functools.wraps(test)
        def over_the_table(**fixtures: Any) -> None:
            __tracebackhide__ = True
            failed: list[tuple[Any, BaseException]] = []
            for number, row in enumerate(table):
                values = dict(zip(keys, row if len(keys) > 1 else [row], strict=True))
                own = dict(fixtures)
                if "tmp_path" in own:
                    own["tmp_path"] = fixtures["tmp_path"] / f"row{number}"
                    own["tmp_path"].mkdir()
                for name in {"capsys", "capfd"} & set(own):
                    own[name].readouterr()
                if "caplog" in own:
                    own["caplog"].clear()
                torch.manual_seed(0)
                try:
                    test(**own, **values)
                except pytest.skip.Exception:
                    continue
                except (Exception, pytest.fail.Exception) as error:
                    failed.append((row, error))
                finally:
                    if "monkeypatch" in own:
                        own["monkeypatch"].undo()
            if failed:
                told = "; ".join(f"{str(row)[:200]}: {type(error).__name__} {str(error)[:300]}" for row, error in failed[:5])
                raise AssertionError(f"{len(failed)} of {len(table)} rows: {told}") from failed[0][1]

        own = [parameter for name, parameter in signature.parameters.items() if name not in keys]
        over_the_table.__signature__ = signature.replace(parameters=own)  # type: ignore[attr-defined]
        return over_the_table

    return decorate
