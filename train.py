# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes the painter: `accelerate launch train.py --model_name_or_path MODEL --train_file rows.tsv …`."""

from pai_painter.training.painter import main

if __name__ == "__main__":
    main()
