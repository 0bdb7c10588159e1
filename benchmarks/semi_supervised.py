"""What `backdoor.py` needs for Dissertation table 5.3: few labelled images, and a backbone trained by SimCLR on all of them.

Algorithm 7 of the dissertation, ch. 5.4.3 and 5.5: 20 % of the poisoned
training set has labels; SimCLR sees the images of that part and more images without labels (there CIFAR-10's others or STL-10).
Here SimCLR sees all poisoned training images, as an attacker who poisons the set would have it, and those of --unlabelled.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import set_seed

from robust_trainer.contrastive.trainer import ContrastiveConfig, ContrastiveTrainer
from robust_trainer.data.load import load_data
from robust_trainer.models.zoo import build_model

#: What makes a semi-supervised run that run, beside the protocol.
SEMI = (
    "labelled_share", "unlabelled", "contrastive_epochs", "contrastive_batch_size", "contrastive_lr", "contrastive_temperature",
    "contrastive_views", "head_lr",
)  # fmt: skip


class Pixels(torch.utils.data.Dataset):
    """Images (N, C, H, W) as examples without labels."""

    def __init__(self, pixels: Tensor):
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"pixel_values": self.pixels[i]}


def labelled_part(images: Any, share: float, seed: int) -> Any:
    """The rows whose labels are used: ``share`` of them, drawn by the seed, in order."""
    if share >= 1:
        return images
    rows = np.sort(np.random.default_rng(seed).permutation(len(images.labels))[: round(share * len(images.labels))])
    keep = torch.from_numpy(rows)
    corrupted = None if images.corrupted is None else images.corrupted[keep]
    return replace(images, pixels=images.pixels[keep], labels=images.labels[keep], corrupted=corrupted)


class Backbones:
    """SimCLR backbones, each trained once for an attack, a rate and a seed, and kept until the next."""

    def __init__(self, args: argparse.Namespace, names: list[str]):
        self.args, self.names = args, names
        self.key: Any = None
        self.state: dict[str, Tensor] = {}
        self._extra: Tensor | None = None

    def weights(self, pixels: Tensor, attack: str, rate: float, seed: int) -> dict[str, Tensor]:
        """The weights of a network whose backbone was trained on ``pixels`` (N, C, H, W) and the extra images."""
        if self.key == (attack, rate, seed):
            return self.state
        args = self.args
        set_seed(seed)
        model, _ = build_model(args.model, self.names, channels=pixels.shape[1], image_size=pixels.shape[2], from_scratch=True)
        with tempfile.TemporaryDirectory() as folder:
            config = ContrastiveConfig(
                output_dir=folder, num_train_epochs=args.contrastive_epochs, learning_rate=args.contrastive_lr,
                per_device_train_batch_size=args.contrastive_batch_size, temperature=args.contrastive_temperature,
                views=args.contrastive_views, lr_scheduler_type="cosine", weight_decay=args.weight_decay, optim="adamw_torch",
                seed=seed, save_strategy="no", logging_strategy="epoch", report_to=[], disable_tqdm=True, bf16=args.bf16,
                dataloader_num_workers=args.workers, dataloader_pin_memory=torch.cuda.is_available(),
                image_mean=[args.image_mean], image_std=[args.image_std],
            )  # fmt: skip
            extra = self.extra()
            trainer = ContrastiveTrainer(
                model, config, train_dataset=Pixels(pixels), extra_dataset=None if extra is None else Pixels(extra)
            )
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.train()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        seen = len(pixels) + (0 if extra is None else len(extra))
        print(f"SimCLR on {seen} images ({attack} {rate} seed {seed}): loss {losses[0]:.3f} to {losses[-1]:.3f}", flush=True)
        self.key, self.state = (attack, rate, seed), {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
        return self.state

    def extra(self) -> Tensor | None:
        """The images of --unlabelled in the model's units, None without."""
        if self._extra is None and self.args.unlabelled:
            rows = load_data(self.args.unlabelled)["train"]["image"]
            levels = np.stack([np.asarray(picture) for picture in rows])
            pixels = torch.from_numpy(levels if levels.ndim == 4 else levels[..., None]).permute(0, 3, 1, 2).float() / 255
            self._extra = ((pixels - self.args.image_mean) / self.args.image_std).contiguous()
        return self._extra
