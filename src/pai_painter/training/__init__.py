# SPDX-License-Identifier: Apache-2.0
"""Training: `train_painter` fine-tunes the painter on cached image tokens, `train_vqgan` trains the VQGAN."""
