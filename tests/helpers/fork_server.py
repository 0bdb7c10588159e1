"""A process that has imported everything, has run nothing and has one thread: what is forked from it cannot hang on a lock.

A fork of a process that has trained inherits the locks of threads which do not exist in it. Here ``python -m
helpers.fork_server ADDRESS`` answers on a socket: it imports when the first one asks, so that a run of tests pays for the
imports once, and ends, with all its children, when the process that started it closes its standard input.
"""

import atexit
import ctypes
import faulthandler
import importlib
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from multiprocessing.connection import Connection

import dill

SERVER = "ROBUST_TRAINER_TESTS_FORK_SERVER"  # the environment variable with the address
MODULES = (
    "torch", "torch.distributed", "accelerate", "datasets", "evaluate", "pytest", "sklearn.datasets", "transformers.trainer",
    "transformers.models.auto.modeling_auto", "transformers.models.vit.modeling_vit", "robust_trainer.trainer",
    "robust_trainer.cli.main", "helpers.processes", "helpers.toy",
)  # fmt: skip


def start_server() -> str:
    """The address of this run's fork server, which lives as long as this process and serves those that it starts too."""
    if SERVER not in os.environ:
        folder = tempfile.mkdtemp(prefix="forks-")
        address = os.path.join(folder, "socket")
        words = [sys.executable, "-m", "helpers.fork_server", address]
        threadless = {**os.environ, "JE_ARROW_MALLOC_CONF": "background_thread:false"}  # pyarrow's allocator starts one
        server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=threadless)
        os.environ[SERVER] = address

        def stop():
            server.stdin.close()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
            shutil.rmtree(folder, ignore_errors=True)

        atexit.register(stop)
    return os.environ[SERVER]


def serve(address: str) -> None:
    """Forks for whoever connects to ``address``, until standard input ends."""
    children: dict[int, Connection] = {}
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as ready:
        listener.bind(address)
        listener.listen(64)
        ready.register(listener, selectors.EVENT_READ)
        ready.register(0, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fileobj == 0:
                    for child in children:
                        os.kill(child, signal.SIGKILL)
                    os._exit(0)  # at once: taking down all that was imported takes seconds
                if key.fileobj is listener:
                    import_all()
                    ready.register(Connection(listener.accept()[0].detach()), selectors.EVENT_READ)
                else:
                    answer(key.fileobj, children, ready)


def answer(asker: Connection, children: dict[int, Connection], ready) -> None:
    """One question: ``("fork", request)``, ``("poll", child)`` or ``("kill", child)``."""
    try:
        what, value = asker.recv()
    except (EOFError, OSError):  # it is gone, and nobody waits for its children
        ready.unregister(asker)
        for child in [child for child, owner in children.items() if owner is asker]:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            del children[child]
        return
    if what == "fork":
        child = os.fork()
        if not child:
            run(value)
        children[child] = asker
        asker.send(child)
    elif what == "kill":
        os.kill(value, signal.SIGKILL)  # not reaped yet: the number is its own
        asker.send(None)
    else:
        done, status = os.waitpid(value, os.WNOHANG)
        if done:
            del children[value]
        asker.send(os.waitstatus_to_exitcode(status) if done else None)


def import_all() -> None:
    """The imports of a test, once, and nothing that runs."""
    for name in MODULES:
        importlib.import_module(name)
    if os.path.isdir("/proc/self/task") and len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("importing has started a thread: forks of this process are not safe")


def run(request: dict) -> None:
    """The child: does the work and ends; what it prints, raises or hangs in is in its log."""
    code = 1
    try:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: killed when the server ends
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = (open(file, "w", buffering=1, closefd=False) for file in (1, 2))
        faulthandler.enable()
        faulthandler.dump_traceback_later(request["patience"])
        sys.path[:] = request["path"]
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        code = dill.loads(request["work"])() or 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for file in (sys.stdout, sys.stderr):
            file.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
