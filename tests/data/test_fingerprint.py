"""The one digest: content, kind and order count, nothing else does."""

import numpy as np
import pytest
import torch
from helpers import toy

from robust_trainer.data.fingerprint import fingerprint

ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_different_contents_are_told_apart(tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    model, other = toy.logits_module(), toy.logits_module()
    with torch.no_grad():
        other.head.bias[0] += 1e-6
    parts = [
        (), (None,), ("",), (0,), (False,), (1,), (1.0,), ("1",), (b"1",), ("ab", "c"), ("a", "bc"), (["ab", "c"],), (["ab"], "c"),
        ([1, 2], [3]), ([1], [2, 3]), ([],), ({},), ({"a": 1},), ({"a": 2},), ({"b": 1},), ({"a": {"b": 1}},), ({"a": 1, "b": 1},),
        (ROWS,), (ROWS.T,), (ROWS.T.copy().reshape(2, 3),), (ROWS.reshape(3, 2),), (ROWS.astype(np.float64),), (-ROWS,),
        (torch.from_numpy(ROWS),), (torch.from_numpy(ROWS).bfloat16(),), (model,), (other,), (tmp_path / "a",), (tmp_path / "b",),
        (float("nan"),), (float("inf"),), (2**70,),
    ]  # fmt: skip
    made = [fingerprint(*part) for part in parts]
    assert len(set(made)) == len(made)
    assert all(len(digits) == 16 and int(digits, 16) >= 0 for digits in made)


def test_equal_contents_are_the_same(tmp_path):
    """Pinned too: so it is on every machine."""
    assert fingerprint("data", 3, ROWS) == "47de0ffea1b21bc6"
    assert fingerprint({"a": 1, "b": ROWS}) == fingerprint({"b": ROWS.copy(order="F"), "a": 1})
    assert fingerprint([1, "a"]) == fingerprint((1, "a")) == fingerprint(x for x in (1, "a"))
    assert fingerprint(np.int64(3), np.float64(0.5)) == fingerprint(3, 0.5)
    tensor = torch.arange(12.0).view(3, 4)
    assert fingerprint(tensor.T) == fingerprint(tensor.T.contiguous()) != fingerprint(tensor)
    model = toy.logits_module()
    known = fingerprint(model)
    model.train()
    model.requires_grad_(False)
    assert fingerprint(model) == known == fingerprint(toy.logits_module().to(memory_format=torch.channels_last))
    (tmp_path / "a").write_bytes(b"x" * 10**6)
    (tmp_path / "b").write_bytes(b"x" * 10**6)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")


@pytest.mark.parametrize("part", [object(), np.array([object()]), {"a": object()}])
def test_what_has_no_content_is_refused(part):
    with pytest.raises(ValueError, match="^a fingerprint of .* is not defined: give arrays of numbers, texts, mappings"):
        fingerprint(part)
