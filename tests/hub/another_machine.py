# SPDX-License-Identifier: Apache-2.0
"""
What somebody does with repositories on another machine, with or without this package: run by `elsewhere` in a process
of its own, it tells in JSON what came out.
"""

import hashlib
import importlib
import json
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import torch

OURS = Path(__file__).parents[2] / "src"
CAPTION = "众位作伴"  # of letters that all vocabularies here have


class NotInstalled(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "pai_painter":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def uninstall() -> None:
    sys.meta_path.insert(0, NotInstalled())
    for name in ("pai_painter", "pai_painter.model.modeling_pai_painter"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        raise SystemExit(f"{name} can be imported")


def our_files() -> list[str]:
    """Modules in use that are this package's, by their name or by where they are."""
    files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    return sorted(
        name
        for name, file in files.items()
        if name.partition(".")[0] == "pai_painter" or (file and Path(file).is_relative_to(OURS))
    )


def paint_by_transformers(repository: str, saved: str, options: dict[str, Any]) -> dict[str, Any]:
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModel,
        AutoModelForCausalLM,
        AutoProcessor,
        AutoTokenizer,
    )

    model = AutoModel.from_pretrained(repository, **options)
    processor = AutoProcessor.from_pretrained(repository, **options)
    parts = {
        "config": AutoConfig.from_pretrained(repository, **options),
        "tokenizer": AutoTokenizer.from_pretrained(repository, **options),
        "image_processor": AutoImageProcessor.from_pretrained(repository, **options),
        "language_model": AutoModelForCausalLM.from_pretrained(repository, **options),
        "model": model,
        "processor": processor,
    }
    input_ids = processor(text=CAPTION, return_tensors="pt")["input_ids"]
    assert input_ids.tolist() == parts["tokenizer"]([CAPTION], padding="max_length")["input_ids"]
    painted = model.generate_images(input_ids, num_images_per_prompt=2, seed=5)
    images = processor.image_processor.postprocess(painted.pixel_values)
    pixel_values = processor(images=images, return_tensors="pt")["pixel_values"]
    model.save_pretrained(saved)
    processor.save_pretrained(saved)
    return {
        "classes": {name: type(part).__name__ for name, part in parts.items()},
        "images": [hashlib.sha256(image.tobytes()).hexdigest() for image in images],
        "generated": model.generate(input_ids, do_sample=False)[0].tolist(),
        "encoded": model.vqgan.encode(pixel_values).image_tokens.tolist(),
    }


def use_vqgan(repository: str, saved: str, options: dict[str, Any]) -> dict[str, Any]:
    from transformers import AutoImageProcessor, AutoModel

    vqgan = AutoModel.from_pretrained(repository, **options)
    processor = AutoImageProcessor.from_pretrained(repository, **options)
    vqgan.save_pretrained(saved)
    processor.save_pretrained(saved)
    codes = torch.arange(vqgan.config.num_image_tokens)[None]
    images = processor.postprocess(vqgan.decode(codes))
    return {"images": [hashlib.sha256(image.tobytes()).hexdigest() for image in images]}


def paint_by_diffusers(repository: str, saved: str, options: dict[str, Any]) -> dict[str, Any]:
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(repository, **options)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(CAPTION, 2, seed=5).images
    pipe.save_pretrained(saved)
    return {
        "classes": {name: type(part).__name__ for name, part in pipe.components.items()},
        "pipeline": f"{type(pipe).__module__}.{type(pipe).__name__}" if "pai_painter" in sys.modules else None,
        "dtype": str(pipe.model.dtype),
        "images": [hashlib.sha256(image.tobytes()).hexdigest() for image in images],
    }


WAYS = {"transformers": paint_by_transformers, "vqgan": use_vqgan, "diffusers": paint_by_diffusers}

if __name__ == "__main__":
    installed, jobs = json.loads(sys.argv[1])
    if installed:
        importlib.import_module("pai_painter")
    else:
        uninstall()
    results = [WAYS[way](repository, saved, options) for way, repository, saved, options in jobs]
    print(json.dumps({"results": results, "ours": our_files()}))
