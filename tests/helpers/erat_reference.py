"""ERAT's selection and losses as slow loops, one sample at a time (ERAT eq. 1 to 5, 8, 9)."""

import math


def softmax(z, temperature=1.0):
    top = max(z)
    e = [math.exp((v - top) / temperature) for v in z]
    return [v / sum(e) for v in e]


def brier(z, y):
    return sum((p - (k == y)) ** 2 for k, p in enumerate(softmax(z)))


def share_out(budget, rates, capacity):
    """One class after another is filled up until what is left fits; then whole samples by the largest remainders."""
    got, full = [0.0] * len(rates), set()
    while True:
        left = budget - sum(capacity[k] for k in full)
        open_ = [k for k in range(len(rates)) if k not in full and rates[k] > 0]
        total = sum(rates[k] for k in open_)
        got = [float(capacity[k]) if k in full else left * rates[k] / total if k in open_ else 0.0 for k in range(len(rates))]
        over = [k for k in open_ if got[k] > capacity[k] + 1e-9]
        if not over:
            break
        full.add(min(over, key=lambda k: capacity[k] / rates[k]))
    whole = [math.floor(v + 1e-9) for v in got]
    order = sorted(range(len(rates)), key=lambda k: (-(got[k] - whole[k]) if whole[k] < capacity[k] else 1, k))
    for k in order[: budget - sum(whole)]:
        whole[k] += 1
    return whole


def split(scores, labels, kept, classes, eta, scale):
    """Whom to trust: eq. 2's number, shared out by eq. 3 to 5."""
    mean = sum(scores) / len(scores)
    budget = sum(s <= mean + 1e-9 for s in scores)
    used = scores
    if scale == "minmax":
        used = [(s - min(scores)) / (max(scores) - min(scores)) for s in scores]
    rates = []
    for k in range(classes):
        rows = [i for i, y in enumerate(labels) if y == k and kept[i]] or [i for i, y in enumerate(labels) if y == k]
        rates.append(max(1 - sum(used[i] for i in rows) / len(rows), 1e-3) ** eta if rows else 0.0)
    rates = [r / sum(rates) for r in rates]
    counts = share_out(budget, rates, [labels.count(k) for k in range(classes)])
    mask = [False] * len(scores)
    for k in range(classes):
        for i in sorted((i for i, y in enumerate(labels) if y == k), key=lambda i: (scores[i], i))[: counts[k]]:
            mask[i] = True
    return mask, counts


def cross_entropy(z, y):
    return -math.log(softmax(z)[y])


def distance(z, q, mean=False):
    total = sum((p - v) ** 2 for p, v in zip(softmax(z), q))
    return total / len(q) if mean else total
