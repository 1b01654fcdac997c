# SPDX-License-Identifier: Apache-2.0
"""
A painter of EasyNLP → a folder for `from_pretrained`.

    python conversion/from_easynlp.py pai-painter-base-zh.tgz painter

SOURCE is the archive of EasyNLP's model zoo, a folder, or a `pytorch_model_step_N.bin` beside its config.json.
"""

import argparse

from pai_painter.convert import convert

parser = argparse.ArgumentParser(description="A painter of EasyNLP to a folder for from_pretrained.")
parser.add_argument("source", help="the .tgz, the folder, or a file pytorch_model_step_N.bin in it")
parser.add_argument("output", help="a new folder")
parser.add_argument("--vq-config", help="a file with the VQGAN's sizes, if it isn't VQGAN f16_16384")
arguments = parser.parse_args()

report = convert(arguments.source, arguments.output, vq_config=arguments.vq_config)
print(*report.lines(), sep="\n")
