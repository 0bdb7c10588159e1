"""Short sounds of two classes, and tiny models of each kind that reads them."""

import datasets
import numpy as np
import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    AutoModelForAudioClassification,
    HubertConfig,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
)

RATE, CLASSES, WIDTH = 8000, 2, 16
WAVE = dict(
    hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, conv_dim=(12, 12), conv_kernel=(10, 8),
    conv_stride=(10, 8), num_feat_extract_layers=2, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    classifier_proj_size=12, feat_extract_norm="layer", apply_spec_augment=False, mask_time_prob=0.0, layerdrop=0.0,
    hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0,
)  # fmt: skip
CONFIGS = {
    "wav2vec2": lambda: Wav2Vec2Config(**WAVE, num_labels=CLASSES),
    "hubert": lambda: HubertConfig(**WAVE, num_labels=CLASSES),
    "ast": lambda: ASTConfig(
        hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, patch_size=8, time_stride=8,
        frequency_stride=8, max_length=48, num_mel_bins=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        num_labels=CLASSES,
    ),
    "whisper": lambda: WhisperConfig(
        d_model=WIDTH, encoder_layers=1, encoder_attention_heads=2, decoder_layers=1, decoder_attention_heads=2, encoder_ffn_dim=24,
        decoder_ffn_dim=24, num_mel_bins=16, max_source_positions=50, vocab_size=20, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None, dropout=0.0, num_labels=CLASSES,
    ),
}  # fmt: skip
KINDS = tuple(CONFIGS)


def extractor(kind):
    if kind == "ast":
        return ASTFeatureExtractor(sampling_rate=RATE, num_mel_bins=16, max_length=48, do_normalize=True)
    if kind == "whisper":
        return WhisperFeatureExtractor(feature_size=16, sampling_rate=2 * RATE, hop_length=160, chunk_length=1, n_fft=400)
    return Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=True, return_attention_mask=True)


def net(kind, seed=0):
    torch.manual_seed(seed)
    return AutoModelForAudioClassification.from_config(CONFIGS[kind]())


def waves(n=32, seed=0, shortest=1600, longest=3200):
    """Noisy chirps: class 0 falls and class 1 rises; lists (T,), and their classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    out = []
    for label in labels:
        size = int(rng.integers(shortest, longest + 1))
        way = np.linspace(300, 1200, size)[:: 1 if label else -1]
        out.append((0.3 * np.sin(2 * np.pi * np.cumsum(way) / RATE) + 0.02 * rng.standard_normal(size)).astype(np.float32))
    return out, labels


def sounds(n=32, seed=0, **sizes):
    """The same as a data set, columns audio (arrays with their rate) and label."""
    arrays, labels = waves(n, seed, **sizes)
    features = datasets.Features(
        {
            "audio": {"array": datasets.List(datasets.Value("float32")), "sampling_rate": datasets.Value("int64")},
            "label": datasets.ClassLabel(names=["falls", "rises"]),
        }
    )
    rows = {"audio": [{"array": a.tolist(), "sampling_rate": RATE} for a in arrays], "label": labels.tolist()}
    return datasets.Dataset.from_dict(rows, features=features)
