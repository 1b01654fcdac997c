# SPDX-License-Identifier: Apache-2.0
"""
A painter of PaddleNLP → a folder for `from_pretrained`.

    python conversion/from_paddlenlp.py pai-painter-base-zh painter --vqgan vqgan

SOURCE holds model_state.pdparams and vocab.txt. PaddleNLP's VQGAN is decoder only: without --vqgan the painter paints,
but can't be trained.
"""

import argparse

from pai_painter.convert import convert

parser = argparse.ArgumentParser(description="A painter of PaddleNLP to a folder for from_pretrained.")
parser.add_argument("source", help="the folder with model_state.pdparams and vocab.txt")
parser.add_argument("output", help="a new folder")
parser.add_argument("--vqgan", help="a folder with the whole VQGAN, such as from_taming.py writes")
parser.add_argument("--config", help="a JSON file with num_attention_heads, if attention heads aren't 64 wide")
parser.add_argument("--vq-config", help="a file with the VQGAN's sizes, if it isn't VQGAN f16_16384")
arguments = parser.parse_args()

report = convert(
    arguments.source,
    arguments.output,
    vqgan=arguments.vqgan,
    config=arguments.config,
    vq_config=arguments.vq_config,
)
print(*report.lines(), sep="\n")
