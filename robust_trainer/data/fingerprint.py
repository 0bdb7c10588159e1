"""What tells data, settings and models from others: one short digest of their content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def fingerprint(*parts: Any) -> str:
    """Returns 16 hexadecimal digits that depend on the content of the parts, their kinds and their order alone.

    Guarantee: the same on every machine and in every process; parts are kept apart, so that ("ab", "c") is not ("a", "bc"), nor
    [1, 2], [3] the same as [1], [2, 3]. An array or tensor counts with its type, shape and values, wherever it lies and however it
    is laid out; a mapping in any order of its keys; a module with its class, parameters and buffers; a path by the bytes of the
    file. It tells accidents from intentions, and is no protection against people who mean to deceive.

    Args:
        parts: None, booleans, numbers, strings, bytes, numpy arrays, tensors, torch modules, paths of files; mappings, sequences
            and iterators of these.

    Raises:
        ValueError: for a part of another kind, and for an array of objects.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        _update(digest, part)
    return digest.hexdigest()


def _update(digest: Any, part: Any) -> None:
    if part is None or isinstance(part, bool | int | float | np.generic):
        _write(digest, "value", repr(part.item() if isinstance(part, np.generic) else part).encode())
    elif isinstance(part, str):
        _write(digest, "text", part.encode())
    elif isinstance(part, bytes):
        _write(digest, "bytes", part)
    elif isinstance(part, Path):
        with part.open("rb") as file:
            _write(digest, "file", hashlib.file_digest(file, "sha256").digest())
    elif isinstance(part, Tensor):
        _write(digest, f"tensor {part.dtype} {tuple(part.shape)}", _bytes(part))
    elif isinstance(part, np.ndarray) and not part.dtype.hasobject:
        _write(digest, f"array {part.dtype.str} {part.shape}", np.ascontiguousarray(part).tobytes())
    elif isinstance(part, nn.Module):
        _write(digest, "module", type(part).__name__.encode())
        _update(digest, {name: value for name, value in part.state_dict().items() if isinstance(value, Tensor)})
    elif isinstance(part, Mapping):
        _write(digest, "mapping", b"")
        for key in sorted(part, key=repr):
            _update(digest, key)
            _update(digest, part[key])
        _write(digest, "end", b"")
    elif isinstance(part, Iterable) and not isinstance(part, np.ndarray):
        _write(digest, "sequence", b"")
        for item in part:
            _update(digest, item)
        _write(digest, "end", b"")
    else:
        what = f"an array of {part.dtype}" if isinstance(part, np.ndarray) else f"a {type(part).__name__}"
        raise ValueError(f"a fingerprint of {what} is not defined: give arrays of numbers, texts, mappings or sequences of them.")


def _write(digest: Any, kind: str, content: bytes) -> None:
    digest.update(f"{kind} {len(content)}\n".encode())
    digest.update(content)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
