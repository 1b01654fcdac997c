# SPDX-License-Identifier: Apache-2.0
"""A VQGAN of taming-transformers: a Lightning checkpoint (`.ckpt`) and the settings that it was trained with (YAML)."""

from pathlib import Path
from typing import Any

from ..model.configuration_pai_painter import PaiPainterVQConfig
from ..model.image_processing_pai_painter import PaiPainterImageProcessor
from ..model.modeling_vqgan import PaiPainterVQModel
from .reading import ReadModel
from .safe_pickle import CheckpointError, printable
from .torch_files import open_torch_file
from .vqgans import read_settings
from .weights import fill_model, grouped, torch_weights

__all__ = ["read_taming"]

_KINDS = ("taming.models.vqgan.VQModel", "taming.models.vqgan.VQNoDiscModel")  # the second differs in training only
_OF_TRAINING = {"ckpt_path", "colorize_nlabels", "image_key", "lossconfig", "monitor", "sane_index_shape"}
_LOSS = "loss."  # discriminator and LPIPS


def read_taming(checkpoint: Path, settings: Path | None = None) -> ReadModel:
    """
    Reads a VQGAN.

    Args:
        checkpoint: the `.ckpt`.
        settings: the YAML file of its training; by default the only one beside the checkpoint or in the neighbouring
            folder `configs`, where taming keeps it.

    Raises:
        OSError: if a file isn't there.
        ValueError: if one is damaged or unsafe, if it is another kind of model than a VQGAN, or if the weights don't
            fit the settings.
    """
    settings = _find_settings(checkpoint) if settings is None else settings
    config = _read_config(settings)
    with open_torch_file(checkpoint) as file:
        content = file.content
        whole = isinstance(content, dict) and "state_dict" in content
        found = torch_weights(file, content["state_dict"] if whole else content)
        _refuse_other_kinds(found, checkpoint)
        if config.num_res_blocks * len(config.channel_multiplier) > len(found):  # before so many are built
            raise CheckpointError(f"{checkpoint} has {len(found)} weights, far fewer than {settings} says.")
        weights = {name: weight for name, weight in found.items() if not name.startswith(_LOSS)}
        model = fill_model(PaiPainterVQModel, config, weights, str(checkpoint))
    ignored = grouped(name for name in found if name not in weights)
    if whole:
        ignored += [printable(name) for name in content if name != "state_dict"]
    return ReadModel(
        "taming-transformers",
        model,
        PaiPainterImageProcessor(size=config.resolution),
        read=[checkpoint.name, settings.name],
        ignored=ignored,
    )


def _find_settings(checkpoint: Path) -> Path:
    folders = (checkpoint.parent, checkpoint.parent.parent / "configs")
    for folder in folders:
        found = sorted(path for path in folder.glob("*") if path.suffix in (".yaml", ".yml"))
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(path.name for path in found)
            raise CheckpointError(f"{folder} has several YAML files ({names}): please name the VQGAN's with --config.")
    raise OSError(f"There is no YAML file beside {checkpoint}: please name the one it was trained with, with --config.")


def _read_config(path: Path) -> PaiPainterVQConfig:
    model = read_settings(path).get("model")
    if not isinstance(model, dict) or not isinstance(model.get("params"), dict):
        raise CheckpointError(f"{path} isn't taming's: it has no `model` with `target` and `params`.")
    target, params = model.get("target"), dict(model["params"])
    if target not in _KINDS:
        raise CheckpointError(f"{path} describes a {str(target)[:100]!r}; only {_KINDS[0]} is supported.")
    if params.pop("remap", None) is not None:
        raise CheckpointError(f"{path} gives the codes other numbers (`remap`), which isn't supported.")
    fields: dict[str, Any] = {name: value for name, value in params.items() if name not in _OF_TRAINING}
    if fields.keys() != {"ddconfig", "embed_dim", "n_embed"} or not isinstance(fields["ddconfig"], dict):
        raise CheckpointError(
            f"{path} must have exactly `ddconfig`, `embed_dim` and `n_embed` among its `params` (beside settings of "
            f"training), but has {', '.join(map(str, fields)) or 'none'}."
        )
    try:
        return PaiPainterVQConfig.from_ddconfig(**fields)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {str(error).rstrip('.')}.") from error


def _refuse_other_kinds(names: dict[str, Any], checkpoint: Path) -> None:
    """Whatever the settings say."""
    if "quantize.proj.weight" in names or "quantize.embed.weight" in names:
        raise CheckpointError(f"{checkpoint} holds a GumbelVQ, which isn't supported: only VQGANs with a codebook are.")
    if "quantize.embedding.cluster_size" in names:
        raise CheckpointError(f"{checkpoint} holds an EMAVQ, which isn't supported.")
    if any(name.startswith(("first_stage_model.", "transformer.")) for name in names):
        raise CheckpointError(f"{checkpoint} holds a transformer (Net2NetTransformer), not a VQGAN.")
