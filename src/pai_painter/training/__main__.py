# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes the painter: `accelerate launch -m pai_painter.training …` with the words of train.py."""

from .train_painter import main

if __name__ == "__main__":
    main(program="python -m pai_painter.training")
