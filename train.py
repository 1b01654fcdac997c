# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes the painter: `accelerate launch train.py --model_name_or_path MODEL --train_file rows.tsv …`."""

import sys

try:
    from pai_painter.training.train_painter import main
except KeyboardInterrupt:  # the libraries take seconds to import
    sys.stderr.write("train.py: Stopped; nothing has begun.\n")
    sys.exit(130)

if __name__ == "__main__":
    main()
