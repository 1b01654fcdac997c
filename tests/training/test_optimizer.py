# SPDX-License-Identifier: Apache-2.0
"""Which weights decay."""

import torch
from tiny_world import PAINTER, VQGAN

from pai_painter import PaiPainterConfig, PaiPainterForImageGeneration, PaiPainterVQConfig, PaiPainterVQModel
from pai_painter.training.arguments import TrainingArguments
from pai_painter.training.training_run import build_optimizer

ARGUMENTS = TrainingArguments(output_dir="unused", weight_decay=0.3, adam_beta2=0.9, learning_rate=0.01)


def groups(model: torch.nn.Module) -> tuple[set[str], set[str]]:
    optimizer = build_optimizer(model, ARGUMENTS)
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed, others = optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert decayed["betas"] == (0.9, 0.9)
    assert decayed["lr"] == 0.01
    return {names[p] for p in decayed["params"]}, {names[p] for p in others["params"]}


def test_the_painter_as_mingpt() -> None:
    config = PaiPainterConfig(**{**PAINTER, "num_hidden_layers": 1}, vq_config=VQGAN)
    painter = PaiPainterForImageGeneration(config)
    painter.vqgan.requires_grad_(False)
    decayed, others = groups(painter)
    block = "model.layers.0"
    assert decayed == {
        *(f"{block}.attn.{name}_proj.weight" for name in ("q", "k", "v", "out")),
        *(f"{block}.mlp.{name}.weight" for name in ("fc_1", "fc_2")),
        "lm_head.weight",
    }
    assert others == {
        *("model.embed_tokens.weight", "model.embed_positions", "model.norm.weight", "model.norm.bias"),
        *(f"{block}.{name}.{kind}" for name in ("ln_1", "ln_2") for kind in ("weight", "bias")),
        *(f"{block}.attn.{name}_proj.bias" for name in ("q", "k", "v", "out")),
        *(f"{block}.mlp.{name}.bias" for name in ("fc_1", "fc_2")),
    }


def test_the_vqgan() -> None:
    vqgan = PaiPainterVQModel(PaiPainterVQConfig(**VQGAN))
    decayed, others = groups(vqgan)
    assert decayed | others == {name for name, _ in vqgan.named_parameters()}
    assert "encoder.conv_in.weight" in decayed
    assert "quantize.embedding.weight" in others
    assert all("norm" not in name and name.endswith(".weight") for name in decayed)
    assert all("norm" in name or name.endswith(".bias") or "embedding" in name for name in others)
