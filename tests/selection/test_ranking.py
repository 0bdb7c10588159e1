"""Which scores of a class are the smallest: by one sort of scores and classes together, as by their ranks."""

import pytest
import torch

from robust_trainer.selection.ranking import rank_within, smallest


def by_rank(scores, labels, counts, order):
    keep = torch.zeros(len(scores), dtype=torch.bool)
    keep[order] = rank_within(scores.nan_to_num(nan=torch.inf)[order], labels[order], len(counts))[0] < counts[labels[order]]
    return keep


@pytest.mark.parametrize("tied", [False, True])
def test_the_smallest_are_those_of_the_smallest_ranks(tied):
    """Ties in both orders, NaN, infinity, both zeros, empty classes, none and more than there are."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        n, classes = (int(torch.randint(low, high, (1,), generator=generator)) for low, high in ((0, 60), (1, 5)))
        scores = torch.randint(-3, 4, (n,), generator=generator).float() if tied else torch.randn(n, generator=generator)
        scores[:5] = torch.tensor([torch.nan, torch.inf, -0.0, -torch.inf, 0.0])[:n]
        labels, counts = (
            torch.randint(low, high, (size,), generator=generator) for low, high, size in ((0, classes, n), (-1, 30, classes))
        )
        order = torch.randperm(n, generator=generator)
        found = smallest(scores, labels, counts, lambda order=order: order)
        assert torch.equal(found, by_rank(scores, labels, counts, order))
        assert torch.equal(found, smallest(scores.double(), labels, counts, lambda order=order: order))
        assert torch.equal(smallest(scores, labels, counts), by_rank(scores, labels, counts, torch.arange(n)))


def test_the_order_of_ties_is_asked_for_where_it_matters_alone():
    def never():
        raise AssertionError("nobody is tied at the limit")

    scores, labels = torch.tensor([0.3, 0.1, 0.1, 0.2]), torch.zeros(4, dtype=torch.long)
    assert smallest(scores, labels, torch.tensor([2]), never).tolist() == [False, True, True, False]
    with pytest.raises(AssertionError, match="nobody is tied"):
        smallest(scores, labels, torch.tensor([1]), never)
