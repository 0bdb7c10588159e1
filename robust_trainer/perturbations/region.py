"""Where an attack on images may go: within eps of each image and in [0, 1] pixels."""

from __future__ import annotations

from torch import Tensor

from .norms import Draws, find_norm


class Region:
    """The images within eps of x (B, C, H, W) and in [0, 1]; a step is few passes over the pixels, in place where nobody looks.

    Every iterated attack on images is made of it: the evaluation attacks, the poisons and the class-wise robustness.

    Args:
        norm: a name of `norms.NORMS`.
        eps: the radius >= 0, in [0, 1] pixels.
        x: the clean images in [0, 1].
    """

    def __init__(self, norm: str, eps: float, x: Tensor):
        self.norm, self.eps, self.x = find_norm(norm), eps, x
        self.limits = self.norm.cube(x, eps)

    def only(self, keep: Tensor) -> Region:
        """Returns the region of the rows ``keep`` (N,)."""
        return Region(self.norm.name, self.eps, self.x[keep])

    def step(self, image: Tensor, grad: Tensor, size: float | Tensor) -> Tensor:
        """Returns P(image + size direction(grad)); size: a number, or (B, 1, 1, 1)."""
        return self.project_(self.norm.step(grad, size).add_(image))

    def project_(self, image: Tensor) -> Tensor:
        """Returns P(image): onto the ball of radius eps around x, then the clip to [0, 1]; overwrites ``image``.

        The clip brings no pixel further from x, so it does not leave the ball.
        """
        if self.limits is not None:
            return image.clamp_(*self.limits)
        return self.norm.pull_(image, self.x, self.eps).clamp_(0, 1)

    def random_start(self, draws: Draws) -> Tensor:
        """Returns a random image of the region: the norm's random point of the ball, clipped to [0, 1]."""
        return self.project_(self.x + self.norm.random_start(self.x, self.eps, draws))
