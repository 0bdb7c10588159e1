"""One pass of an encoder over a data set: a row's features as one vector, pooled from what the network returns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor, nn
from transformers import default_data_collator
from transformers.utils import logging

from ..data.audio import AudioTransform, undecoded_audio
from ..data.decode import undecoded
from ..data.preprocess import ImageTransform, kind_of, model_channels
from ..data.readable import check_readable
from ..data.texts import check_texts
from ..models.features import Layers, forward_names, last_linear, mean_of_tokens, token_mask, watched
from ..models.modes import scoring_mode
from ..models.outputs import logits_of

#: What is no input.
_LABELS = ("labels", "label", "label_ids")
#: Texts that are tokenised at a time.
_TEXTS = 1000


def encode(
    model: nn.Module,
    data: datasets.Dataset,
    *,
    processing_class: Any = None,
    column: str = "image",
    batch_size: int = 64,
    device: torch.device | str | None = None,
) -> np.ndarray:
    """Returns the features of each row, (N, D) float32, in the data set's order: one pass in evaluation mode.

    Of a classifier they are the input of its last linear layer; of an encoder the mean over the tokens that are no padding, over
    the patches, or over the places of the last map, or what its pooling makes of an image. Texts are read in the order of their
    lengths, so that little is padded. A progress bar is shown (`transformers.utils.logging.disable_progress_bar`).

    Guarantee: weights, modes, gradients and random state are as before, also after an exception; images are decoded by
    `decode_image` alone where there is a processor.

    Args:
        model: an encoder or a classifier of images, texts or sounds.
        data: the rows.
        processing_class: the model's image processor, tokenizer or feature extractor; None: the data set's own columns, or what
            its transform makes of them, are the model's inputs.
        column: of the images, texts or sounds, for the processor.
        batch_size: rows of a batch, >= 1.
        device: where batches go; None: where the model is, which is not moved.

    Raises:
        ValueError: for settings out of range, images or texts that cannot be read, and outputs without features.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r} must be a whole number >= 1: give for instance 64.")
    if processing_class is None:
        batches = _ready(model, data, batch_size)
    elif kind_of(processing_class) == "text":
        batches = _texts(data, column, processing_class, batch_size)
    elif kind_of(processing_class) == "audio":
        batches = _sounds(data, column, processing_class, batch_size)
    else:
        batches = _images(model, data, column, processing_class, batch_size)
    bar = logging.tqdm(desc="features", total=len(data), unit="row")
    found: np.ndarray | None = None
    try:
        for rows, features in encode_batches(model, batches, device):
            if found is None:
                found = np.empty((len(data), features.shape[1]), dtype=np.float32)
            if features.shape[1] != found.shape[1]:
                width = f"{features.shape[1]} features in row {rows[0]} and {found.shape[1]} in others"
                raise ValueError(f"{type(model).__name__} returned {width}: make all inputs of one size.")
            found[rows] = features.cpu().numpy()
            bar.update(len(rows))
    finally:
        bar.close()
    if found is None:
        raise ValueError("data has no rows: give some.")
    return found


def encode_batches(
    model: nn.Module, batches: Iterable[tuple[np.ndarray, Mapping[str, Any]]], device: torch.device | str | None = None
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yields the row numbers (B,) of each batch and its rows' features (B, D) float32, as `encode`.

    Args:
        model: as of `encode`.
        batches: row numbers, and the model's inputs; what its forward does not name is left out.
        device: as of `encode`.
    """
    network = _encoder_of(model)
    device = torch.device(device) if device is not None else next((p.device for p in model.parameters()), torch.device("cpu"))
    names = forward_names(network)
    for rows, batch in batches:
        taken = {k: v for k, v in batch.items() if (names is None or k in names) and k not in _LABELS}
        if not taken:
            raise ValueError(f"{type(model).__name__} takes {sorted(names or ())} but the batch has {sorted(batch)}: rename them.")
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in taken.items()}
        if device.type == "cpu" and isinstance(pixels := moved.get("pixel_values"), Tensor) and pixels.dim() == 4:
            moved["pixel_values"] = pixels.contiguous(memory_format=torch.channels_last)  # half the time of a convolution
        with scoring_mode(model):
            features = _features(model, network, moved, len(rows))
        yield rows, features


def _encoder_of(model: Any) -> Any:
    """The part of the model that reads inputs: of a bare sequence-to-sequence model its encoder."""
    bare = type(model).__name__.endswith("Model")  # as transformers calls them; a classifier is called so by its task
    return model.get_encoder() if bare and getattr(getattr(model, "config", None), "is_encoder_decoder", False) else model


def _features(model: Any, network: Any, batch: Mapping[str, Any], rows: int) -> Tensor:
    """The features of a batch's rows, (B, D) float32."""
    if network is model and hasattr(model, "get_image_features") and hasattr(model, "get_text_features"):
        part = model.get_image_features if "pixel_values" in batch else model.get_text_features
        outputs = part(**batch)  # of a model of images and texts together
        return (outputs if isinstance(outputs, Tensor) else outputs.pooler_output).flatten(1).float()
    with watched(network) as layers:
        outputs = network(**batch)
        return _pooled(network, outputs, layers, batch, rows)


def _pooled(model: Any, outputs: Any, layers: Layers, batch: Mapping[str, Any], rows: int) -> Tensor:
    """The features of a batch's rows, (B, D) float32, from what the network returned."""
    logits = logits_of(outputs)
    if logits is not None and logits.dim() == 2 and len(logits) == rows:
        if isinstance(outputs, Tensor) and logits.shape[1] not in layers.linear:
            return outputs.float()  # a network whose last layer was taken off
        return last_linear(layers, outputs, logits.float())[1]
    hidden, pooled = _entry(outputs, "last_hidden_state", rows), _entry(outputs, "pooler_output", rows)
    hidden = logits if hidden is None and isinstance(outputs, Tensor | tuple | list) and logits is not None else hidden
    own = hidden is None or ("input_ids" not in batch and not _is_learned(getattr(model, "pooler", None)))
    if pooled is not None and own:
        return pooled.flatten(1).float()
    if hidden is not None and len(hidden) == rows and hidden.dim() >= 2:
        if hidden.dim() == 3:
            return mean_of_tokens(hidden.float(), token_mask(model, hidden, batch))
        return (hidden.mean((2, 3)) if hidden.dim() == 4 else hidden.flatten(1)).float()
    got = sorted(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__
    raise ValueError(
        f"{type(model).__name__} returned {got}, expected logits, last_hidden_state or pooler_output of {rows} rows: give an "
        "encoder or a classifier."
    )


def _entry(outputs: Any, name: str, rows: int) -> Tensor | None:
    value = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
    return value if isinstance(value, Tensor) and len(value) == rows else None


def _is_learned(pooler: Any) -> bool:
    """Whether a pooling has a linear layer of its own: that was made for another task, or was never trained."""
    return isinstance(pooler, nn.Module) and any(isinstance(m, nn.Linear) for m in pooler.modules())


def _images(model: Any, data: Any, column: str, processor: Any, batch_size: int) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Batches of images, decoded and processed as for training."""
    check_readable(data, column)
    plain = undecoded(data.with_format(None).select_columns([column]))
    channels = model_channels(model) if hasattr(model, "config") else 3
    transform = ImageTransform(processor, channels, column, "no label", getattr(plain.features[column], "mode", None))
    for start in range(0, len(plain), batch_size):
        rows = np.arange(start, min(start + batch_size, len(plain)))
        yield rows, transform(plain[start : start + batch_size], rows.tolist())


def _texts(data: Any, column: str, tokenizer: Any, batch_size: int) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Batches of tokens, the longest first: where the memory is too small it shows at once."""
    check_texts(data, name=column, column=column)
    texts, tokens = data.with_format(None).select_columns([column]), []
    for start in range(0, len(texts), _TEXTS):
        part = tokenizer(list(texts[start : start + _TEXTS][column]), truncation=True)
        tokens += [{name: values[i] for name, values in part.items()} for i in range(len(part["input_ids"]))]
    order = np.argsort([-len(row["input_ids"]) for row in tokens], kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield rows, dict(tokenizer.pad([tokens[i] for i in rows], return_tensors="pt"))


def _sounds(data: Any, column: str, extractor: Any, batch_size: int) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Batches of sounds, decoded and processed as for training."""
    plain = undecoded_audio(data.with_format(None).select_columns([column]))
    transform = AudioTransform(extractor, column, "no label")
    for start in range(0, len(plain), batch_size):
        rows = np.arange(start, min(start + batch_size, len(plain)))
        yield rows, dict(extractor.pad(transform(plain[start : start + batch_size], rows.tolist()), return_tensors="pt"))


def _ready(model: Any, data: Any, batch_size: int) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Batches of rows that are the model's inputs as they come."""
    names = forward_names(_encoder_of(model))
    mend = "give the model's image processor or tokenizer as processing_class"
    transformed = getattr(data, "format", {}).get("type") == "custom"
    if isinstance(data, datasets.Dataset) and not transformed:
        wanted = [c for c in data.column_names if c not in _LABELS and (names is None or c in names)]
        if not wanted:
            raise ValueError(
                f"{type(model).__name__} takes {sorted(names or ())} but the data set has {data.column_names}: {mend}."
            )
        data = undecoded(data.select_columns(wanted))  # nobody but `decode_image` opens an image
    for start in range(0, len(data), batch_size):
        rows = np.arange(start, min(start + batch_size, len(data)))
        kept = [{k: v for k, v in data[int(row)].items() if names is None or k in names} for row in rows]
        try:
            batch = default_data_collator(kept)
        except (ValueError, TypeError, RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())[:150]
            raise ValueError(f"rows {rows[0]} to {rows[-1]} make no batch ({reason}): {mend}.") from error
        yield rows, batch
