"""A folder is written to by one process at a time; the lock says by which, and no dead one keeps it."""

import json
import os
import re
import signal
import socket
import time

import pytest

from robust_trainer.reporting import locks
from robust_trainer.reporting.locks import LOCK, hold, release


@pytest.fixture(autouse=True)
def free():
    yield
    release()


def elsewhere(work):
    """What ``work()`` raises in a process of its own, '' for nothing; a fork that runs no torch."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except ValueError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    os.set_blocking(read, False)
    try:
        return os.read(read, 10_000).decode()
    except BlockingIOError:
        return ""
    finally:
        os.close(read), os.close(write)


def holder(folder):
    """A process that holds the lock until it is killed."""
    child = os.fork()
    if not child:
        hold(folder)
        time.sleep(60)
        os._exit(0)
    end = time.monotonic() + 20
    while not (folder / LOCK).exists() or not (folder / LOCK).read_text():
        assert time.monotonic() < end
        time.sleep(0.01)
    return child


def test_a_second_process_is_told_who(tmp_path):
    hold(tmp_path / "run")
    told = elsewhere(lambda: hold(tmp_path / "run"))
    who = f"process {os.getpid()} on {re.escape(socket.gethostname())} since 20.* UTC"
    assert re.fullmatch(f"'{tmp_path}/run' is written to by {who} .*: wait for its end, or give another folder.", told)
    assert elsewhere(lambda: hold(tmp_path / "other")) == "" == elsewhere(lambda: hold(tmp_path / "run", ".another.lock"))
    hold(tmp_path / "run")  # once more, by the same process
    release()
    assert elsewhere(lambda: hold(tmp_path / "run")) == ""


def test_a_killed_process_keeps_nothing(tmp_path):
    child = holder(tmp_path)
    with pytest.raises(ValueError, match=f"written to by process {child} on"):
        hold(tmp_path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / LOCK).exists(), "it could not take its file away"
    hold(tmp_path)
    assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()


def test_a_fork_of_the_holder_holds_nothing(tmp_path):
    """Loader workers: they neither keep the lock when their parent is gone nor give it back for it."""
    hold(tmp_path)
    assert elsewhere(release) == "" and (tmp_path / LOCK).exists()
    assert "is written to by" in elsewhere(lambda: hold(tmp_path))


def test_processes_of_one_run_share_it(tmp_path, monkeypatch):
    hold(tmp_path)

    def second():
        os.environ["RANK"] = "1"
        hold(tmp_path)

    assert elsewhere(second) == ""


@pytest.mark.parametrize("content", ["", "[" * 5000, '{"process": 1}', "\x1b[31m"])
def test_what_is_in_the_file_does_not_matter(tmp_path, content):
    (tmp_path / LOCK).write_text(content)
    hold(tmp_path)
    os.pwrite(next(iter(locks._HELD.values()))[0], b"\x1b[31m" + b" " * 400, 0)
    assert "is written to by another process: wait" in elsewhere(lambda: hold(tmp_path))


def test_nothing_is_left(tmp_path):
    hold(tmp_path / "a/b")
    release()
    assert not (tmp_path / "a/b").exists() and (tmp_path / "a").exists()
    (tmp_path / "c").mkdir()
    hold(tmp_path / "c")
    (tmp_path / "c/kept").touch()
    release()
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["kept"]


def test_a_link_in_the_locks_place_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("text")
    (tmp_path / LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError):
        hold(tmp_path)
    assert (tmp_path / "precious").read_text() == "text"


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(38, "Function not implemented")

    said = []
    monkeypatch.setattr(locks.fcntl, "lockf", none)
    monkeypatch.setattr(locks.logger, "warning", said.append)
    hold(tmp_path)
    assert len(said) == 1 and "cannot be locked (Function not implemented)" in said[0]
