# SPDX-License-Identifier: Apache-2.0
"""How good a painter is: `likelihood` measures how well it predicts the image tokens of pictures."""
