# SPDX-License-Identifier: Apache-2.0
"""Training: `painter` fine-tunes the transformer on cached codes, `vqgan` trains the VQGAN."""
