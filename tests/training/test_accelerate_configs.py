# SPDX-License-Identifier: Apache-2.0
"""The launcher's settings that ship with the recipes, read by accelerate's own loader and launcher."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import prepare_multi_gpu_env
from tiny_world import PAINTER, ROOT, VQGAN

from pai_painter import PaiPainterConfig, PaiPainterForImageGeneration

FOLDER = ROOT / "examples" / "accelerate_configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_it(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    config = load_config_from_file(str(path))  # a name that it doesn't know is an error
    assert config.distributed_type == content["distributed_type"]
    assert (config.num_processes, config.mixed_precision) == (content["num_processes"], "bf16")


def environment(name: str) -> dict[str, str]:
    """What `accelerate launch` tells the trainer's processes."""
    words = ["--config_file", str(FOLDER / name), "train.py"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    return prepare_multi_gpu_env(arguments)


def test_fsdp_shards_the_transformers_blocks() -> None:
    told = environment("fsdp2.yaml")
    assert (told["ACCELERATE_USE_FSDP"], told["FSDP_VERSION"]) == ("true", "2")
    painter = PaiPainterForImageGeneration(PaiPainterConfig(**PAINTER, vq_config=VQGAN))
    blocks = [module for module in painter.modules() if type(module).__name__ == told["FSDP_TRANSFORMER_CLS_TO_WRAP"]]
    assert len(blocks) == PAINTER["num_hidden_layers"]


def test_the_others_are_what_they_are_called() -> None:
    assert len(CONFIGS) == 4
    for name in ("multi_gpu.yaml", "multi_node.yaml"):
        assert environment(name).get("ACCELERATE_USE_FSDP", "false") == "false"
