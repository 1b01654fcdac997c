# SPDX-License-Identifier: Apache-2.0
"""Reads a VQGAN of taming-transformers: a Lightning checkpoint (`.ckpt`) and the YAML file of its training."""

from pathlib import Path

from ..model.configuration_pai_painter import PaiPainterVQConfig
from ..model.image_processing_pai_painter import PaiPainterImageProcessor
from ..model.modeling_vqgan import PaiPainterVQModel
from .checkpoint_reading import CheckpointError, ConversionReport, fill_model, grouped, load_weights, read_settings

_KINDS = ("taming.models.vqgan.VQModel", "taming.models.vqgan.VQNoDiscModel")  # the second differs in training only
_OF_TRAINING = {"ckpt_path", "colorize_nlabels", "image_key", "lossconfig", "monitor", "sane_index_shape"}


def read_taming(checkpoint: Path, settings: Path | None = None) -> ConversionReport:
    """
    Reads a VQGAN from its `.ckpt` and the YAML file of its training: by default the only one beside the checkpoint or
    in the neighbouring folder `configs`, where taming keeps it.
    """
    settings = settings or _find_settings(checkpoint)
    config = _read_config(settings)
    found, others = load_weights(checkpoint)
    weights = {name: tensor for name, tensor in found.items() if not name.startswith("loss.")}  # discriminator, LPIPS
    model = fill_model(PaiPainterVQModel, config, weights, checkpoint)
    ignored = grouped(name for name in found if name not in weights) + others
    processor = PaiPainterImageProcessor(size=config.resolution)
    return ConversionReport("taming-transformers", model, processor, [checkpoint.name, settings.name], ignored)


def _find_settings(checkpoint: Path) -> Path:
    folders = (checkpoint.parent, checkpoint.parent.parent / "configs")
    found = next((files for folder in folders if (files := sorted(folder.glob("*.y*ml")))), [])
    if len(found) != 1:
        number = "several YAML files" if found else "no YAML file"
        raise OSError(f"There is {number} beside {checkpoint}: please name that of its training with --config.")
    return found[0]


def _read_config(path: Path) -> PaiPainterVQConfig:
    model = read_settings(path).get("model")
    params = model.get("params") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(params, dict):
        raise CheckpointError(f"{path} isn't a taming-transformers config: no `model` with `target` and `params`.")
    if model.get("target") not in _KINDS:
        raise CheckpointError(f"{path} describes {str(model.get('target'))[:80]!r}; only {_KINDS[0]} is supported.")
    fields = {name: value for name, value in params.items() if name not in _OF_TRAINING and value is not None}
    if fields.keys() != {"ddconfig", "embed_dim", "n_embed"}:
        names = ", ".join(map(str, fields)) or "none of them"
        raise CheckpointError(f"{path} must have `ddconfig`, `embed_dim` and `n_embed` in `params`, but has {names}.")
    try:
        return PaiPainterVQConfig.from_ddconfig(**fields)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} doesn't describe a VQGAN: {str(error).rstrip('.')}.") from error
