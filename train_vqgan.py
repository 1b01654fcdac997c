# SPDX-License-Identifier: Apache-2.0
"""Trains the VQGAN: `accelerate launch train_vqgan.py --config_name FOLDER --train_file rows.tsv --output_dir out`."""

import sys

try:
    from pai_painter.training.train_vqgan import main
except KeyboardInterrupt:  # the libraries take seconds to import
    sys.stderr.write("train_vqgan.py: Stopped; nothing has begun.\n")
    sys.exit(130)

if __name__ == "__main__":
    main()
