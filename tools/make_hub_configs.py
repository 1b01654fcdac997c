# SPDX-License-Identifier: Apache-2.0
"""
Writes hub_configs/<model>: what a published model's repository holds beside its weights, its card included. The
vocabulary, which the published models share, is there once, as hub_configs/vocab.txt.

    python tools/make_hub_configs.py --vocabulary tests/golden/vocab.txt --output hub_configs

The cards are made from tools/hub_cards/, with sizes that are counted on the meta device. The demo's folder is the one
in the package without its weights.
"""

import argparse
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData

from pai_painter import (
    DEMO_MODEL,
    PaiPainterConfig,
    PaiPainterForImageGeneration,
    PaiPainterImageProcessor,
    PaiPainterProcessor,
    PaiPainterTokenizer,
    PaiPainterVQConfig,
    PaiPainterVQModel,
)

CARDS = Path(__file__).parent / "hub_cards"
OWNER = "alibaba-pai"  # where EasyNLP's commands and EasyNLP's users look for the models
VQGAN = "vqgan-f16-16384"
DEMO = "pai-painter-demo"
LARGE = {"num_hidden_layers": 24, "num_attention_heads": 16, "hidden_size": 1024}


@dataclass(frozen=True)
class Painter:
    """
    What the card of a published painter says. What isn't published isn't said.

    Args:
        summary: what it paints, in one sentence.
        trained_on: as far as is published.
        caption: an example, of the kind that it was made for.
        sizes: where they aren't the base model's.
        tags: beside those of every painter.
        base_model: the painter that it was fine-tuned from.
    """

    summary: str
    trained_on: str
    caption: str
    sizes: dict[str, int] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    base_model: str | None = None


_GENERAL = "General Chinese image-text pairs. How many there were and where they came from is not published."
PAINTERS = {
    "pai-painter-base-zh": Painter("Paints pictures of anything from Chinese captions.", _GENERAL, "一只熊猫"),
    "pai-painter-large-zh": Painter(
        "Paints pictures of anything from Chinese captions; the larger of the two general models.",
        _GENERAL,
        "一只熊猫",
        LARGE,
    ),
    "pai-painter-commercial-base-zh": Painter(
        "Paints products for sale from Chinese captions.",
        "Alibaba's e-commerce data. How much there was, from which shops, and whether training started from "
        "`pai-painter-base-zh`, which has the same size, is not published.",
        "宽松T恤",
        tags=("e-commerce",),
    ),
    "pai-painter-scenery-base-zh": Painter(
        "Paints natural scenes from Chinese captions.",
        "Fine-tuned on the natural scenes in COCO-CN. Which of its pictures those are is not published, and the model "
        "that it was fine-tuned from is not named; the metadata names the general one of the same size, "
        "`pai-painter-base-zh`.",
        "一片水域的景色以日落为背景",
        tags=("scenery",),
        base_model="pai-painter-base-zh",
    ),
    "pai-painter-painting-base-zh": Painter(
        "Paints Chinese landscape paintings from Chinese captions.",
        "Chinese landscape paintings. How many there were, who painted them, and whether training started from "
        "`pai-painter-base-zh`, which has the same size, is not published.",
        "见说春风偏有贺，露花千朵照庭闱",
        tags=("art", "chinese-painting"),
    ),
}


def write_painter(name: str, folder: Path, vocabulary: Path) -> None:
    """config.json, generation_config.json, processor_config.json, tokenizer_config.json and the card."""
    config = PaiPainterConfig(**PAINTERS[name].sizes, architectures=["PaiPainterForImageGeneration"])
    processor = PaiPainterProcessor(
        PaiPainterImageProcessor(size=config.vq_config.resolution), PaiPainterTokenizer(str(vocabulary))
    )
    processor.check_model(config)
    config.save_pretrained(folder)
    with torch.device("meta"):
        PaiPainterForImageGeneration(config).generation_config.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "tokenizer.json").unlink()  # the vocabulary, which is beside the folders
    (folder / "README.md").write_text(painter_card(name, config), encoding="utf-8")


def write_vqgan(folder: Path) -> None:
    """config.json, preprocessor_config.json and the card."""
    config = PaiPainterVQConfig(architectures=["PaiPainterVQModel"])
    config.save_pretrained(folder)
    PaiPainterImageProcessor(size=config.resolution).save_pretrained(folder)
    (folder / "README.md").write_text(vqgan_card(config), encoding="utf-8")


def write_demo(folder: Path) -> None:
    """Everything of the package's model but the weights, its card included."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in Path(DEMO_MODEL).iterdir():
        if file.suffix != ".safetensors":
            shutil.copyfile(file, folder / file.name)


def painter_card(name: str, config: PaiPainterConfig) -> str:
    """README.md of a published painter."""
    painter = PAINTERS[name]
    metadata = ModelCardData(
        language="zh",
        license="unknown",  # what the Hub calls weights that nobody has stated a licence for
        library_name="transformers",
        pipeline_tag="text-to-image",
        tags=["pai-painter", "vqgan", "chinese", *painter.tags],
        base_model=None if painter.base_model is None else f"{OWNER}/{painter.base_model}",
        base_model_relation=None if painter.base_model is None else "finetune",
    )
    with torch.device("meta"):
        model = PaiPainterForImageGeneration(config)
    fields = {
        "name": name,
        "repository": f"{OWNER}/{name}",
        "summary": painter.summary,
        "trained_on": painter.trained_on,
        "caption": painter.caption,
        "side": config.vq_config.resolution,
        "text_length": config.text_length,
        "num_image_tokens": config.num_image_tokens,
        "parameters": f"{model.num_parameters() / 1e6:.0f} million",
        "sizes": painter_sizes(config),
    }
    return _card("painter.md", metadata, fields)


def vqgan_card(config: PaiPainterVQConfig) -> str:
    """README.md of the published VQGAN."""
    metadata = ModelCardData(
        license="mit",
        library_name="transformers",
        pipeline_tag="image-to-image",  # by itself it makes no picture of a text
        tags=["pai-painter", "vqgan"],
    )
    fields = {
        "name": VQGAN,
        "repository": f"{OWNER}/{VQGAN}",
        "side": config.resolution,
        "grid": config.image_grid,
        "num_image_tokens": config.num_image_tokens,
        "vocabulary": f"{config.num_embeddings:,}",
        "sizes": vqgan_sizes(config),
    }
    return _card("vqgan.md", metadata, fields)


def _card(template: str, metadata: ModelCardData, fields: dict[str, Any]) -> str:
    text = (CARDS / template).read_text(encoding="utf-8")
    return str(ModelCard.from_template(metadata, template_str=text, **fields)).rstrip() + "\n"


def painter_sizes(config: PaiPainterConfig) -> str:
    """A table of parameters and bytes: the transformer, the VQGAN, both, and the cache of a picture while painting."""
    with torch.device("meta"):
        model = PaiPainterForImageGeneration(config)
    total, vqgan = model.num_parameters(), model.vqgan.num_parameters()
    cache = 2 * config.num_hidden_layers * config.max_position_embeddings * config.hidden_size
    rows = [("transformer", total - vqgan), ("VQGAN", vqgan), ("total", total)]
    return _table(rows) + f"\n| key/value cache | | {_bytes(cache * 4)} | {_bytes(cache * 2)} |"


def vqgan_sizes(config: PaiPainterVQConfig) -> str:
    """A table of parameters and bytes: the two halves of the VQGAN, its codebook, and all of it."""
    with torch.device("meta"):
        model = PaiPainterVQModel(config)
    parts = {"encoder": 0, "codebook": 0, "decoder": 0}
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        part = {"quant_conv": "encoder", "post_quant_conv": "decoder", "quantize": "codebook"}.get(part, part)
        parts[part] += parameter.numel()
    return _table([*parts.items(), ("total", model.num_parameters())])


def _table(rows: list[tuple[str, int]]) -> str:
    lines = ["| | parameters | in float32 | in bfloat16 or float16 |", "|---|---|---|---|"]
    lines += [f"| {name} | {count:,} | {_bytes(count * 4)} | {_bytes(count * 2)} |" for name, count in rows]
    return "\n".join(lines)


def _bytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=Path, required=True, help="vocab.txt of Chinese BERT, 21128 lines")
    parser.add_argument("--output", type=Path, default=Path("hub_configs"))
    arguments = parser.parse_args()
    for name in PAINTERS:
        write_painter(name, arguments.output / name, arguments.vocabulary)
    shutil.copyfile(arguments.vocabulary, arguments.output / "vocab.txt")
    write_vqgan(arguments.output / VQGAN)
    write_demo(arguments.output / DEMO)


if __name__ == "__main__":
    main()
