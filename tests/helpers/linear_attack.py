"""A linear model whose distance to every boundary has a closed form."""

import torch


class Linear:
    """logits = W x + b, each row summed by itself, so that a row does not depend on its batch; counts its calls."""

    def __init__(self, classes, shape=(1, 4, 4), seed=0, scale=1.0):
        g = torch.Generator().manual_seed(seed)
        self.w = torch.randn(classes, *shape, generator=g) * scale
        self.b = -self.w.flatten(1).sum(1) * 0.5
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return (x.flatten(1)[:, None] * self.w.flatten(1)).sum(-1) + self.b


def length(delta, norm):
    return delta.flatten(1).abs().amax(1) if norm == "linf" else delta.flatten(1).norm(dim=1)


def near_the_middle(model, n, shape, seed=1):
    """Images whose margin is well above float32's rounding."""
    g = torch.Generator().manual_seed(seed)
    x = 0.5 + 0.05 * torch.randn(4 * n, *shape, generator=g)
    top = model(x).topk(2).values
    x = x[top[:, 0] - top[:, 1] > 0.05][:n]
    return x, model(x).argmax(1)


def distance_to_boundary(model, x, y, norm):
    """min_k (z_y - z_k) / |w_y - w_k|_dual, one sample at a time."""
    out = []
    for image, label in zip(x, y.tolist()):
        logits = model(image[None])[0]
        found = []
        for k in range(len(logits)):
            if k != label:
                w = (model.w[label] - model.w[k]).flatten()
                found.append((logits[label] - logits[k]) / (w.abs().sum() if norm == "linf" else w.norm()))
        out.append(min(found))
    return torch.stack(out)
