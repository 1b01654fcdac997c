# SPDX-License-Identifier: Apache-2.0
"""Trains the codec: `accelerate launch train_codec.py --config_name FOLDER --train_file rows.tsv --output_dir out`."""

from pai_painter.training.codec import main

if __name__ == "__main__":
    main()
