# SPDX-License-Identifier: Apache-2.0
"""EasyNLP's folders (`model_type: "artist"`): read, and written so that the original program finds all it looks for."""

import json
import re
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, apply_renamings

from ..model.configuration_pai_painter import PaiPainterConfig, PaiPainterVQConfig
from ..model.modeling_pai_painter import PaiPainterForImageGeneration
from ..model.processing_pai_painter import PaiPainterProcessor
from ..model_hash import architecture_of
from .reading import ReadModel, read_vocabulary
from .safe_pickle import CheckpointError
from .torch_files import open_torch_file
from .vqgans import read_settings
from .weights import Weight, fill_model, grouped, shapes_of, torch_weights

__all__ = ["read_easynlp", "write_easynlp"]

_WEIGHTS = "pytorch_model.bin"
_STEP = re.compile(r"pytorch_model_step_(\d+)\.bin")
_MASK = re.compile(r"transformer\.blocks\.\d+\.attn\.mask")  # minGPT keeps its causal mask as a buffer
_NEVER_READ = ("pytorch_model.meta.bin", "train_config.json", "label_mapping.json")
_FIXED = {"hidden_act": "gelu", "layer_norm_eps": 1e-5}  # what EasyNLP's code has for all its models


def read_easynlp(source: Path, vq_config: PaiPainterVQConfig | None = None) -> ReadModel:
    """
    Reads a painter of EasyNLP.

    Args:
        source: its folder, or one of the files of weights in it (`pytorch_model_step_N.bin`).
        vq_config: the VQGAN's sizes, if it isn't VQGAN f16_16384: EasyNLP doesn't write them down.

    Raises:
        OSError: if a file isn't there.
        ValueError: if one is damaged or unsafe, or if weights, configuration and vocabulary don't fit each other.
    """
    weights_file = source if source.is_file() else _find_weights(source)
    folder = weights_file.parent
    settings = read_settings(folder / "config.json") if (folder / "config.json").is_file() else {}
    if settings.get("model_type") != "artist":
        raise CheckpointError(f"{folder} has no config.json of EasyNLP (`model_type` must be 'artist').")
    try:
        config = PaiPainterConfig.from_dict(settings, vq_config=vq_config)
    except TypeError as error:  # comparing what is no number
        raise CheckpointError(f"The config.json of {folder} has sizes that are no numbers.") from error
    processor = read_vocabulary(folder / "vocab.txt", config)
    with open_torch_file(weights_file) as file:
        found = torch_weights(file, file.content)
        if config.num_hidden_layers > len(found):  # before so many are built
            raise CheckpointError(f"{weights_file} has {len(found)} weights for {config.num_hidden_layers} layers.")
        names = _easynlp_names(shapes_of(PaiPainterForImageGeneration, config, str(folder)))
        ours = {theirs: name for name, theirs in names.items()}
        masks = [name for name in found if _MASK.fullmatch(name)]
        weights: dict[str, Weight] = {
            ours.get(name, name): weight for name, weight in found.items() if not _MASK.fullmatch(name)
        }
        model = fill_model(PaiPainterForImageGeneration, config, weights, str(weights_file), names)
    others = [path.name for path in sorted(folder.iterdir()) if path.name in _NEVER_READ or _STEP.fullmatch(path.name)]
    return ReadModel(
        "EasyNLP",
        model,
        processor,
        read=["config.json", weights_file.name, "vocab.txt"],
        ignored=grouped(masks) + [name for name in others if name != weights_file.name],
    )


def _find_weights(folder: Path) -> Path:
    if (folder / _WEIGHTS).is_file():
        return folder / _WEIGHTS
    steps = sorted(
        (path for path in folder.iterdir() if _STEP.fullmatch(path.name)),
        key=lambda path: int(cast(re.Match, _STEP.fullmatch(path.name))[1]),
    )
    if not steps:
        raise OSError(f"{folder} has no {_WEIGHTS} and no pytorch_model_step_N.bin, which would be its weights.")
    if len(steps) > 1:
        raise CheckpointError(
            f"{folder} has the weights of {len(steps)} steps: please name one of them, such as {steps[-1]}."
        )
    return steps[0]


def _easynlp_names(painter: PaiPainterForImageGeneration) -> dict[str, str]:
    """EasyNLP's name of each weight, by ours."""
    mapping = get_model_conversion_mapping(cast(PreTrainedModel, painter), add_legacy=False)
    backwards = [cast(WeightRenaming, each.reverse_transform()) for each in reversed(mapping)]
    return {name: apply_renamings(name, backwards) for name in painter.state_dict()}


def write_easynlp(painter: PaiPainterForImageGeneration, processor: PaiPainterProcessor, folder: Path) -> list[str]:
    """
    Writes config.json, pytorch_model.bin and vocab.txt as EasyNLP does, the buffers of its attention included.

    Args:
        painter: the model.
        processor: its processor.
        folder: an existing one.

    Returns:
        What its user should know.

    Raises:
        ValueError: if EasyNLP's program can't hold such a model.
    """
    config = painter.config
    _check_that_easynlp_can(config)
    pieces = processor.tokenizer.convert_ids_to_tokens(range(config.image_vocab_size, config.vocab_size))
    if any("\n" in piece for piece in pieces):
        raise CheckpointError("EasyNLP's vocab.txt has a word piece a line, but one of this vocabulary's has two.")
    names, weights = _easynlp_names(painter), painter.state_dict()
    content = {names[name]: tensor.detach().contiguous() for name, tensor in weights.items()}
    for layer in range(config.num_hidden_layers):
        content[f"transformer.blocks.{layer}.attn.mask"] = _attention_mask(config)
    torch.save(content, folder / _WEIGHTS)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8", newline="\n")
    text = json.dumps(_easynlp_config(config), indent=2, sort_keys=True)
    (folder / "config.json").write_text(f"{text}\n", encoding="utf-8")
    if architecture_of(config.vq_config) != architecture_of(PaiPainterVQConfig()):
        return [
            "EasyNLP builds the VQGAN f16_16384 and no other: with this one it runs only if its code is changed, "
            "and pai-painter reads the folder again with --vq-config."
        ]
    return []


def _check_that_easynlp_can(config: PaiPainterConfig) -> None:
    if not config.vq_config.has_encoder:  # type: ignore[union-attr]
        raise CheckpointError(
            "EasyNLP's models have a whole VQGAN, but this model's has no encoder (EasyNLP would go on with a random "
            "one without a word); please give it one with --vqgan."
        )
    for name, value in {**_FIXED, "intermediate_size": 4 * config.hidden_size}.items():
        if getattr(config, name) != value:
            raise CheckpointError(
                f"EasyNLP's models all have `{name}` {value}, but this model's is {getattr(config, name)}."
            )
    if not config.vq_config.encoder_attention:  # type: ignore[union-attr]
        raise CheckpointError("EasyNLP's VQGAN has attention in its encoder, but this model's hasn't.")


def _attention_mask(config: PaiPainterConfig) -> torch.Tensor:
    """(1, 1, T, T), 1 where a position (row) may look."""
    length, unmasked = config.max_position_embeddings, config.num_unmasked
    mask = torch.ones(length, length).tril()
    mask[:unmasked, :unmasked] = 1
    return mask.view(1, 1, length, length)


def _easynlp_config(config: PaiPainterConfig) -> dict[str, Any]:
    return {
        "architectures": None,
        "attn_pdrop": config.attn_pdrop,
        "block_size": config.max_position_embeddings,
        "embd_pdrop": config.embd_pdrop,
        "img_vocab_size": config.image_vocab_size,
        "model_type": "artist",
        "n_embd": config.hidden_size,
        "n_head": config.num_attention_heads,
        "n_layer": config.num_hidden_layers,
        "n_unmasked": config.num_unmasked,
        "resid_pdrop": config.resid_pdrop,
        "text_vocab_size": config.text_vocab_size,
        "vocab_size": config.vocab_size,
    }
