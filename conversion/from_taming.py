# SPDX-License-Identifier: Apache-2.0
"""
A VQGAN of taming-transformers → a folder for `PaiPainterVQModel.from_pretrained`.

    python conversion/from_taming.py last.ckpt vqgan --config model.yaml
"""

import argparse

from pai_painter.convert import convert

parser = argparse.ArgumentParser(description="A VQGAN of taming-transformers to a folder for from_pretrained.")
parser.add_argument("source", help="the .ckpt")
parser.add_argument("output", help="a new folder")
parser.add_argument("--config", help="its YAML file, if it isn't the only one beside it")
arguments = parser.parse_args()

report = convert(arguments.source, arguments.output, config=arguments.config)
print(*report.lines(), sep="\n")
