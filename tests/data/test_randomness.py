"""Keyed random numbers: a function of the key alone, and nowhere a key that depends on the interpreter."""

import ast
import itertools
from pathlib import Path

import torch

import robust_trainer
from robust_trainer.data.randomness import RowDraws, keyed_generator, keyed_seed


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


# ---- the numbers of a step's samples ----------------------------------------------------------------------------------


def slow_uniform(row, entry, key, call):
    """The numbers of `RowDraws` on Python's integers."""

    def mix(bits):
        for _ in range(2):
            bits = ((bits >> 16) ^ bits) * 0x45D9F3B % 2**32
        return (bits >> 16) ^ bits

    salt = keyed_seed(*key, call)
    return (mix(mix(row ^ salt % 2**32) ^ mix(entry ^ (salt >> 31) % 2**32)) >> 8) / 2**24


def test_row_draws_are_the_hash_whatever_else_is_drawn():
    key = ("random start", 3, 5)
    draws = RowDraws(torch.tensor([7, 2**31 - 1, 0]), *key)
    first, twin, second = draws.uniform(2, 3), draws.copy(), draws.uniform()
    for place, row in enumerate((7, 2**31 - 1, 0)):
        assert first[place].flatten().tolist() == [slow_uniform(row, entry, key, 0) for entry in range(6)]
        assert float(second[place]) == slow_uniform(row, 0, key, 1)
    assert torch.equal(twin.uniform(), second)
    whole = RowDraws(torch.arange(40), *key)
    parts = [RowDraws(rows, *key) for rows in torch.arange(40).split([1, 32, 7])]
    for _ in range(3):
        assert torch.equal(whole.normal(5, 7), torch.cat([part.normal(5, 7) for part in parts]))
    assert torch.equal(RowDraws(torch.arange(4), 1).normal(9, 3)[:, :5], RowDraws(torch.arange(4), 1).normal(5, 3))  # padding


def test_row_draws_are_uniform_and_normal_and_know_nothing_of_each_other():
    """Counts and correlations of rows, entries, calls and keys within 5 standard deviations of independent numbers'."""
    draws = RowDraws(torch.arange(300), "x", 0)
    u, again = draws.uniform(400).double(), draws.uniform(400).double()
    counts = torch.histc(u, 50, 0, 1)
    assert (counts - 2400).abs().max() < 5 * 2400**0.5 and u.min() >= 0 and u.max() < 1
    bits = (u * 2**24).long()
    assert all(abs(float(((bits >> b) & 1).double().mean()) - 0.5) < 5 * 0.5 / 120_000**0.5 for b in range(24))
    others = [
        again,
        *(RowDraws(torch.arange(300) + add, "x", key).uniform(400).double() for add, key in ((0, 1), (0, 2), (300, 0))),
    ]
    pairs = [(u, other) for other in others] + [(u[1:], u[:-1]), (u[:, 1:], u[:, :-1]), (u[2:], u[:-2]), (u[:, 64:], u[:, :-64])]
    for a, b in pairs:
        assert abs(float(((a - 0.5) * (b - 0.5)).mean()) * 12) < 5 / a.numel() ** 0.5
    rows = torch.corrcoef(u) - torch.eye(300)
    assert rows.abs().max() < 6 / 400**0.5
    z = RowDraws(torch.arange(300), "x", 0).normal(400).double()
    assert z.isfinite().all() and z.abs().max() < 5.5
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float(z.pow(power).mean()) - moment) < 5 * (variance / z.numel()) ** 0.5
    torch.testing.assert_close(torch.special.ndtr(z), u + 2**-25, atol=1e-6, rtol=0)  # the same bits


def test_row_draws_move_no_generator():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    RowDraws(torch.arange(3), 1).normal(2)
    assert torch.equal(before, torch.random.get_rng_state())
