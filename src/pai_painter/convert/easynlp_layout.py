# SPDX-License-Identifier: Apache-2.0
"""EasyNLP's folders (`model_type: "artist"`): read, and written with all that the original program looks for."""

import json
import os
import re
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, apply_renamings

from ..model.configuration_pai_painter import PaiPainterVQConfig
from ..model.image_processing_pai_painter import PaiPainterImageProcessor
from ..model.model_files_pai_painter import read_painter_folder
from ..model.modeling_pai_painter import PaiPainterForImageGeneration
from ..model.modeling_vqgan import PaiPainterVQModel
from ..model.processing_pai_painter import PaiPainterProcessor, load_processor
from ..model_hash import architecture_of
from .checkpoint_reading import CheckpointError, ConversionReport, fill_model, grouped, load_weights

_WEIGHTS = "pytorch_model.bin"
_STEP = re.compile(r"pytorch_model_step_\d+\.bin")
_MASK = re.compile(r"transformer\.blocks\.\d+\.attn\.mask")  # minGPT keeps its causal mask as a buffer
_NEVER_READ = ("pytorch_model.meta.bin", "train_config.json", "label_mapping.json")
_OTHER_VQGAN = (
    "EasyNLP's code builds the VQGAN f16_16384 and must be changed for this one; pai-painter needs --vq-config to read "
    "the folder again"
)
_SIZES = {  # by EasyNLP's names
    "block_size": "max_position_embeddings",
    "img_vocab_size": "image_vocab_size",
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_unmasked": "num_unmasked",
    **{name: name for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop", "text_vocab_size", "vocab_size")},
}


def read_easynlp(source: Path, vq_config: PaiPainterVQConfig | None = None) -> ConversionReport:
    """Reads a folder or a file of weights in it; EasyNLP doesn't write the VQGAN's sizes down (`vq_config`)."""
    files = [source] if source.is_file() else [source / _WEIGHTS]
    if not files[0].is_file():
        files = sorted(path for path in source.iterdir() if _STEP.fullmatch(path.name))
    if len(files) != 1:
        raise OSError(f"{source} has {len(files) or 'no'} files pytorch_model(_step_N).bin: please name one.")
    file = files[0]
    folder = read_painter_folder(file.parent, vq_config)
    if folder.layout != "EasyNLP":
        raise CheckpointError(f"{folder.name} has no config.json of EasyNLP (`model_type` must be 'artist').")
    processor = load_processor(folder)
    found, others = load_weights(file)
    if ours := [name for name in found if name.startswith(("model.", "lm_head.", "vqgan."))]:
        raise CheckpointError(f"{file} holds weights under other names than EasyNLP's: {', '.join(ours[:5])}.")
    masks = [name for name in found if _MASK.fullmatch(name)]
    weights = {name: tensor for name, tensor in found.items() if name not in masks}
    model = fill_model(PaiPainterForImageGeneration, folder.config, weights, file)
    beside = [name for name in sorted(os.listdir(file.parent)) if name in _NEVER_READ or _STEP.fullmatch(name)]
    ignored = grouped(masks) + others + [name for name in beside if name != file.name]
    return ConversionReport("EasyNLP", model, processor, ["config.json", file.name, "vocab.txt"], ignored)


def write_easynlp(
    painter: PaiPainterForImageGeneration | PaiPainterVQModel,
    processor: PaiPainterProcessor | PaiPainterImageProcessor,
    folder: Path,
) -> list[str]:
    """
    Writes config.json, pytorch_model.bin and vocab.txt as EasyNLP does, the masks of its attention included. Refuses
    what EasyNLP's code can't hold, and returns what the user should know about the result.
    """
    if isinstance(painter, PaiPainterVQModel) or isinstance(processor, PaiPainterImageProcessor):
        raise CheckpointError("EasyNLP's layout is for painters; this checkpoint is a VQGAN alone.")
    config = painter.config
    for part, name, value in (
        (config, "hidden_act", "gelu"),
        (config, "layer_norm_eps", 1e-5),
        (config, "intermediate_size", 4 * config.hidden_size),
        (config.vq_config, "has_encoder", True),
        (config.vq_config, "encoder_attention", True),
    ):
        if getattr(part, name) != value:
            hint = "; please add the encoder with --vqgan" if name == "has_encoder" else ""
            raise CheckpointError(
                f"EasyNLP's models all have `{name}` {value}, but this model's is {getattr(part, name)}{hint}."
            )
    pieces = processor.tokenizer.convert_ids_to_tokens(range(config.image_vocab_size, config.vocab_size))
    if any("\n" in piece for piece in pieces):
        raise CheckpointError("EasyNLP's vocab.txt has one word piece per line, but one of this model's has a newline.")
    mapping = get_model_conversion_mapping(cast(PreTrainedModel, painter), add_legacy=False)
    renaming = [cast(WeightRenaming, each.reverse_transform()) for each in reversed(mapping)]
    weights = {name: tensor.detach().contiguous() for name, tensor in painter.state_dict().items()}
    content = {apply_renamings(name, renaming): tensor for name, tensor in weights.items()}
    length, unmasked = config.max_position_embeddings, config.num_unmasked
    mask = torch.ones(1, 1, length, length).tril()  # 1 where a position (row) may look
    mask[..., :unmasked, :unmasked] = 1
    content |= {f"transformer.blocks.{layer}.attn.mask": mask.clone() for layer in range(config.num_hidden_layers)}
    torch.save(content, folder / _WEIGHTS)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8", newline="\n")
    settings: dict[str, Any] = {theirs: getattr(config, ours) for theirs, ours in _SIZES.items()}
    settings |= {"architectures": None, "model_type": "artist"}
    text = json.dumps(settings, indent=2, sort_keys=True)
    (folder / "config.json").write_text(f"{text}\n", encoding="utf-8")
    return [] if architecture_of(config.vq_config) == architecture_of(PaiPainterVQConfig()) else [_OTHER_VQGAN]
