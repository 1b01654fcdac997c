# SPDX-License-Identifier: Apache-2.0
"""What of a folder belongs to the model, and in what form it goes to the Hub."""

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, metadata_load, split_state_dict_into_shards_factory
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not in its __all__
from safetensors import SafetensorError, safe_open
from yaml import YAMLError

from .remote_code import CODE_FILES, add_remote_code

__all__ = [
    "DEMO_NAME",
    "belongs_to_model",
    "files_to_push",
    "has_weights",
    "is_base_name",
    "is_reference_name",
    "is_repository_name",
    "missing_shards",
    "planned_files",
    "says_which_model",
]

# The package's own model as an adapter's base: its path is another one on each machine.
DEMO_NAME = "pai_painter.DEMO_MODEL"
# Whatever is not named here stays at home: checkpoints, optimizer state, data, rejected rows, caches, logs.
_FILES = {
    *("config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt"),
    *("adapter_config.json", "README.md", "LICENSE", "NOTICE", "loss.png", "training_summary.json"),
}
_WEIGHTS = re.compile(r"(adapter_)?model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
_OLD_WEIGHTS = re.compile(r"(adapter_|pytorch_)model(-\d{5}-of-\d{5})?\.bin(\.index\.json)?")
_SAMPLES = re.compile(r"samples/[^/]+\.png")


def files_to_push(folder: str | Path) -> list[str]:
    """
    Names, relative to `folder`, of what would go to the Hub: weights (safetensors), configurations of model,
    generation, processor and tokenizer, the card, licence files, loss.png, training_summary.json and samples/*.png.

    Raises:
        ValueError: if the folder holds no model and no adapter, if its weights are incomplete or damaged, or if it is
            another program's.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and _goes(path.name))
    if "config.json" in names and read_json(folder / "config.json").get("model_type") == "artist":
        raise ValueError(
            f"{folder} is a checkpoint of EasyNLP: please convert it first (`pai-painter convert {folder} NEW_FOLDER`)."
        )
    configs = [name for name in ("config.json", "adapter_config.json") if name in names]
    if len(configs) == 2:
        raise ValueError(
            f"{folder} holds a whole model (config.json) and an adapter (adapter_config.json): which of them is meant? "
            f"Please keep them in different folders."
        )
    if not configs or not has_weights(names, configs[0]):
        old = sorted(path.name for path in folder.iterdir() if _OLD_WEIGHTS.fullmatch(path.name))
        raise ValueError(
            f"{folder} holds no model to push: it must have config.json or adapter_config.json, and its weights as "
            f".safetensors"
            + (f", not {old[0]} (`pai-painter convert {folder} NEW_FOLDER` makes them)." if old else ".")
        )
    _check_weights(folder, names)
    return names + sorted(f"samples/{path.name}" for path in folder.glob("samples/*.png") if path.is_file())


def planned_files(
    folder: str | Path, scratch: str | Path, max_shard_size: int | str = "5GB", base: str | None = None
) -> dict[str, Path | bytes]:
    """
    What a push sends: the folder's files (see [`files_to_push`]); with large weights split, with the code that loads
    the model where this package isn't installed, and with an adapter's base under its name on the Hub.

    Args:
        folder: the model's or adapter's.
        scratch: an empty folder, for the shards.
        max_shard_size: the largest file of weights; one in `folder` that is larger is split.
        base: an adapter's base on the Hub, instead of the one that it names.

    Returns:
        the name in the repository, and a file or its content.

    Raises:
        ValueError: if the folder can't be pushed, if its card is damaged, or if an adapter's base is a folder of this
            machine.
    """
    folder = Path(folder)
    files: dict[str, Path | bytes] = {name: folder / name for name in files_to_push(folder)}
    if "README.md" in files:
        _check_card(folder / "README.md")
    if "adapter_config.json" in files:
        return files | _adapter_files(folder, base)
    if base is not None:
        raise ValueError(f"{folder} is a whole model and has no base: please leave `base` out.")
    if "model.safetensors" in files:
        shards = _shards(folder / "model.safetensors", Path(scratch), max_shard_size)
        if shards:
            files = {name: content for name, content in files.items() if name != "model.safetensors"} | shards
    return add_remote_code(files)


def belongs_to_model(name: str) -> bool:
    """Whether a file of a repository is part of a model: of ours, or of one that EasyNLP has saved."""
    return bool(_goes(name) or _SAMPLES.fullmatch(name) or _OLD_WEIGHTS.fullmatch(name) or name in CODE_FILES)


def says_which_model(name: str) -> bool:
    """Whether loading could take another model than the one meant, if this file of an older one stayed."""
    return name in ("config.json", "adapter_config.json") or _WEIGHTS.fullmatch(name) is not None


def has_weights(names: list[str], config: str, old: bool = False) -> bool:
    """
    Whether the weights that belong to a configuration are among files: whole, or by an index.

    Args:
        names: the files.
        config: `"config.json"` for a whole model, `"adapter_config.json"` for an adapter.
        old: EasyNLP's will do.
    """
    if config == "adapter_config.json":
        return "adapter_model.safetensors" in names
    forms = ["model.safetensors", "pytorch_model.bin"] if old else ["model.safetensors"]
    return any(form in names or f"{form}.index.json" in names for form in forms)


def is_base_name(name: str) -> bool:
    """Whether others find an adapter's base by this name: a repository's, or that of the model in the package."""
    return name == DEMO_NAME or ("/" in name and is_repository_name(name))


def is_reference_name(name: str) -> bool:
    """Whether git lets a branch or a tag be called so, as far as the usual slips go."""
    return re.fullmatch(r"[^\s~^:?*\[\\]+", name) is not None and ".." not in name


def is_repository_name(name: str) -> bool:
    """Whether a repository on the Hub can be called so: `owner/name`, or a name alone."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def read_json(path: Path) -> dict[str, Any]:
    """
    The object in a file.

    Raises:
        ValueError: if it holds none.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:  # of JSON or of UTF-8
        raise ValueError(f"{path} is damaged ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, but it holds a {type(content).__name__}.")
    return content


def missing_shards(folder: Path, names: list[str]) -> list[str]:
    """
    The files that an index of weights names and that aren't among `names`, the folder's files that are looked at.

    Raises:
        ValueError: if an index is damaged.
    """
    missing = []
    for index in (name for name in names if name.endswith(".index.json")):
        shards = read_json(folder / index).get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
            raise ValueError(f"{folder / index} is damaged: its weight_map must name the file of each weight.")
        missing += sorted(set(shards.values()) - set(names))
    return missing


def _goes(name: str) -> bool:
    return name in _FILES or _WEIGHTS.fullmatch(name) is not None


def _check_weights(folder: Path, names: list[str]) -> None:
    for name in names:
        if name.endswith(".safetensors"):
            try:
                with safe_open(folder / name, framework="numpy"):  # reads the header, compares it with the length
                    pass
            except SafetensorError as error:
                raise ValueError(f"The weights {folder / name} are damaged or cut off ({error}).") from error
    missing = missing_shards(folder, names)
    if missing:
        why = "isn't called as weights are" if (folder / missing[0]).is_file() else "is missing"
        raise ValueError(f"The weights in {folder} are incomplete: {missing[0]} {why}.")


def _check_card(card: Path) -> None:
    try:
        metadata_load(card)
    except (ValueError, YAMLError) as error:  # of UTF-8, or of its first lines
        raise ValueError(f"The card {card} is damaged ({' '.join(str(error).split())}).") from error


def _shards(weights: Path, scratch: Path, max_shard_size: int | str) -> dict[str, Path | bytes]:
    """A file of weights in pieces, and their index; nothing if it is small enough. In memory is one piece at a time."""
    with weights.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    offsets = {name: tensor["data_offsets"] for name, tensor in header.items() if name != "__metadata__"}
    sizes = {name: end - start for name, (start, end) in offsets.items()}
    plan = split_state_dict_into_shards_factory(
        sizes,  # in place of the tensors, of which only the size is asked for
        get_storage_size=int,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    if not plan.is_sharded:
        return {}
    from safetensors.torch import save_file  # NumPy has no bfloat16

    shards: dict[str, Path | bytes] = {}
    with safe_open(weights, framework="pt") as whole:
        for name, tensors in plan.filename_to_tensors.items():
            save_file({tensor: whole.get_tensor(tensor) for tensor in tensors}, scratch / name, {"format": "pt"})
            shards[name] = scratch / name
    index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
    return shards | {"model.safetensors.index.json": (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()}


def _adapter_files(folder: Path, base: str | None) -> dict[str, Path | bytes]:
    """What of an adapter can't go as it is: its settings and its card, if they are to name another base."""
    settings = read_json(folder / "adapter_config.json")
    if base is None:
        recorded = settings.get("base_model_name_or_path")
        if not isinstance(recorded, str) or not is_base_name(recorded):
            raise ValueError(
                f"The adapter {folder} was trained on a folder of this machine, which nobody else has: please say what "
                f"that model is called on the Hub (`base`, on the command line `--base OWNER/NAME`)."
            )
        return {}
    if "/" not in base or not is_repository_name(base):
        raise ValueError(f"The base of an adapter must be a repository of the Hub, owner/name, got {base!r}.")
    settings |= {"base_model_name_or_path": base, "revision": None}
    files: dict[str, Path | bytes] = {"adapter_config.json": (json.dumps(settings, indent=2) + "\n").encode()}
    if (folder / "README.md").is_file():
        card = ModelCard((folder / "README.md").read_text(encoding="utf-8"))
        card.data["base_model"], card.data["base_model_relation"] = base, "adapter"
        files["README.md"] = str(card).encode()
    return files
