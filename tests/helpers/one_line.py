"""Errors are one line: what came, what was expected, what to do."""

from __future__ import annotations

from robust_trainer.cli.main import main


def fails(capsys, *words: str) -> str:
    assert main(list(words)) == 2
    err = capsys.readouterr().err.strip()
    assert err.startswith("robust-trainer: error: ") and "\n" not in err and "Traceback" not in err
    return err
