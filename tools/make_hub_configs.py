# SPDX-License-Identifier: Apache-2.0
"""
Writes hub_configs/<model>: what a published model's repository holds beside its weights.

    python tools/make_hub_configs.py --vocabulary tests/golden/vocab.txt --output hub_configs
"""

import argparse
from pathlib import Path

import torch
from transformers import BertTokenizer

from pai_painter import PaiPainterConfig, PaiPainterForImageGeneration, PaiPainterImageProcessor, PaiPainterProcessor

MODELS = {
    "pai-painter-base-zh": {},
    "pai-painter-large-zh": {"num_hidden_layers": 24, "num_attention_heads": 16, "hidden_size": 1024},
}


def write(folder: Path, vocabulary: Path, sizes: dict[str, int]) -> None:
    """config.json, generation_config.json, processor_config.json and the tokenizer's files."""
    config = PaiPainterConfig(**sizes, architectures=["PaiPainterForImageGeneration"])
    config.save_pretrained(folder)
    with torch.device("meta"):
        PaiPainterForImageGeneration(config).generation_config.save_pretrained(folder)
    processor = PaiPainterProcessor(
        PaiPainterImageProcessor(size=config.vq_config.resolution),
        BertTokenizer(vocab=str(vocabulary)),
        text_length=config.text_length,
        image_vocab_size=config.image_vocab_size,
    )
    processor.save_pretrained(folder)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=Path, required=True, help="vocab.txt of Chinese BERT, 21128 lines")
    parser.add_argument("--output", type=Path, default=Path("hub_configs"))
    arguments = parser.parse_args()
    for name, sizes in MODELS.items():
        write(arguments.output / name, arguments.vocabulary, sizes)


if __name__ == "__main__":
    main()
