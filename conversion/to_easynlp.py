# SPDX-License-Identifier: Apache-2.0
"""
A painter of this package → a folder for EasyNLP.

    python conversion/to_easynlp.py painter easynlp-model
"""

import argparse

from pai_painter.convert import convert

parser = argparse.ArgumentParser(description="A painter of this package to a folder for EasyNLP.")
parser.add_argument("source", help="the painter's folder")
parser.add_argument("output", help="a new folder")
arguments = parser.parse_args()

report = convert(arguments.source, arguments.output, to="easynlp")
print(*report.lines(), sep="\n")
