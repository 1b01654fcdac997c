# SPDX-License-Identifier: Apache-2.0
"""Trains the VQGAN: `accelerate launch train_vqgan.py --config_name FOLDER --train_file rows.tsv --output_dir out`."""

from pai_painter.training.vqgan import main

if __name__ == "__main__":
    main()
