# SPDX-License-Identifier: Apache-2.0
"""Coloured shapes of 16×16 pixels, the configurations of tiny models, and a way to start the scripts."""

import base64
import io
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
COLOURS = {"红": (220, 30, 30), "绿": (30, 160, 60), "蓝": (40, 60, 220)}
SHAPES = ("圆", "方", "角", "叉")
VQGAN = {
    "model_type": "pai_painter_vqgan",
    "resolution": 16,
    "base_channels": 8,
    "channel_multiplier": [1, 2, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "encoder_attention": False,
    "latent_channels": 8,
    "embed_dim": 8,
    "num_embeddings": 16,
    "norm_num_groups": 4,
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *COLOURS, *SHAPES, "色", "的", "图"]
PAINTER = {
    "model_type": "pai_painter",
    "image_vocab_size": 16,
    "text_vocab_size": len(WORDS),
    "text_length": 6,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "resid_pdrop": 0.1,
}


def draw(colour: tuple[int, int, int], shape: str) -> Image.Image:
    image = Image.new("RGB", (16, 16), "white")
    pen = ImageDraw.Draw(image)
    if shape == "圆":
        pen.ellipse((3, 3, 12, 12), fill=colour)
    elif shape == "方":
        pen.rectangle((3, 3, 12, 12), fill=colour)
    elif shape == "角":
        pen.polygon([(8, 1), (2, 13), (14, 13)], fill=colour)
    else:
        pen.line((2, 2, 13, 13), fill=colour, width=4)
        pen.line((2, 13, 13, 2), fill=colour, width=4)
    return image


def as_base64(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def launch(
    *words: str, processes: int = 1, wait: bool = True, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess | subprocess.Popen:
    """Starts one of the two scripts as a user does."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    own = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(environment or {})}
    command = [*launcher, *words]
    options = {"cwd": ROOT, "env": {**os.environ, **own}, "text": True}
    if wait:
        return subprocess.run(command, capture_output=True, timeout=300, check=False, **options)
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options)
