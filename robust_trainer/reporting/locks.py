"""One process at a time writes to a folder: a lock that says who holds it, and that no dead process keeps."""

from __future__ import annotations

import datetime
import json
import logging
import os
import socket
import sys
from pathlib import Path

from .safe_text import plain

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)  # transformers' own would load the library for every --help

#: The lock's file.
LOCK = ".robust-trainer.lock"
#: What this process holds: (process, file) -> (descriptor, whether the folder was made for it). A fork holds nothing.
_HELD: dict[tuple[int, str], tuple[int, bool]] = {}


def hold(folder: str | Path, name: str = LOCK) -> None:
    """Takes the lock of a folder until `release` or the end of the process, however it ends; the folder is made.

    The operating system keeps the lock (POSIX record locks), so one that a killed process has left is nobody's, and neither forks
    nor loader workers keep it. Of several processes of one run the first holds it for all. Where the file system knows no locks
    there is a warning, and no lock.

    Args:
        folder: To write to.
        name: Of the lock's file, for commands that share a folder and write other files there.

    Raises:
        ValueError: Where another process holds it, in one line that says who and since when.
    """
    folder = Path(folder)
    key = (os.getpid(), os.path.realpath(folder / name))
    if os.environ.get("RANK", "0") != "0" or key in _HELD or fcntl is None:
        return
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        file = os.open(folder / name, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            told = _who(file)
            os.close(file)
            raise ValueError(f"{str(folder)!r} is written to by {told}: wait for its end, or give another folder.") from None
        except OSError as error:
            os.close(file)
            logger.warning(f"{str(folder)!r} cannot be locked ({error.strerror}): see that no two commands write to it at once.")
            return
        if _is_there(file, folder / name):
            break
        os.close(file)  # its holder has just removed it: a new one is needed
    command = plain(" ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]]), 200)
    since = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    content = {"process": os.getpid(), "host": socket.gethostname(), "since": since, "command": command}
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(content).encode(), 0)
    _HELD[key] = (file, made)


def release() -> None:
    """Gives back all locks of this process; their files are removed, and folders that were made for them and are empty."""
    for key, (file, made) in [*_HELD.items()]:
        if key[0] == os.getpid():
            del _HELD[key]
            Path(key[1]).unlink(missing_ok=True)  # before the lock is let go: nobody takes a file that is about to go
            os.close(file)
            if made and not any(Path(key[1]).parent.iterdir()):
                Path(key[1]).parent.rmdir()


def _is_there(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _who(file: int) -> str:
    try:
        content = json.loads(os.pread(file, 4096, 0))
        return plain("process {process} on {host} since {since} ({command})".format(**content), 400)
    except (ValueError, KeyError, TypeError, OSError):
        return "another process"
