"""Keyed random numbers: a function of the key alone, and nowhere a key that depends on the interpreter."""

import ast
import itertools
from pathlib import Path

import torch

import robust_trainer
from robust_trainer.data.randomness import keyed_generator, keyed_seed


def test_seeds_are_the_same_in_every_process():
    """Pinned: Python's own hash of the words differs from process to process, and with it would these."""
    assert keyed_seed() == 7896617691693857887
    assert keyed_seed("random start", 3, 5, 0) == 442821099326041313
    assert keyed_seed("views", 3, -1, 2**40, 0) == 8126917173587736840


def test_different_keys_have_different_seeds():
    words, numbers = ["", "a", "b", "ab"], [0, 1, -1, 2**32, 2**32 + 1, 2**63]
    keys = {key for length in range(4) for key in itertools.product([*words, *numbers], repeat=length)}
    assert len({keyed_seed(*key) for key in keys}) == len(keys) == 1 + 10 + 100 + 1000
    bits = torch.tensor([[seed >> b & 1 for b in range(63)] for seed in (keyed_seed("x", 3, step) for step in range(4000))])
    assert (bits.float().mean(0) - 0.5).abs().max() < 4.5 * 0.5 / 4000**0.5
    flips = (bits[1:] != bits[:-1]).float().mean(0)
    assert (flips - 0.5).abs().max() < 4.5 * 0.5 / 4000**0.5


def test_a_generator_depends_on_its_key_alone_and_moves_no_other():
    before = torch.random.get_rng_state()
    first, second = keyed_generator("a", 1), keyed_generator("a", 2)
    one, two = torch.rand(5, generator=first), torch.rand(5, generator=second)
    again = torch.rand(5, generator=keyed_generator("a", 2)), torch.rand(5, generator=keyed_generator("a", 1))
    assert torch.equal(one, again[1]) and torch.equal(two, again[0]) and not torch.equal(one, two)
    assert torch.equal(before, torch.random.get_rng_state())


def test_nothing_is_keyed_by_pythons_hash():
    calls = [
        f"{path.name}:{node.lineno}"
        for path in Path(robust_trainer.__path__[0]).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hash"
    ]
    assert calls == []
