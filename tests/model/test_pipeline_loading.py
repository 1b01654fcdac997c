# SPDX-License-Identifier: Apache-2.0
"""The pipeline saved and loaded again, by this package, by diffusers and by transformers, with diffusers' options."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, PipelineQuantizationConfig
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, FineGrainedFP8Config, TorchAoConfig

from pai_painter import DEMO_MODEL, PaiPainterForImageGeneration, PaiPainterPipeline, PaiPainterProcessor

TRUST = {"trust_remote_code": True}


def tokens_of(pipe: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe("红苹果", num_images_per_prompt=2, seed=1, output_type="pt").image_tokens


@pytest.fixture
def modules_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where diffusers puts the code that it runs."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


@pytest.mark.usefixtures("modules_cache")
@pytest.mark.parametrize("model", ["demo", "tiny"])
def test_a_round_trip_through_all_ways_of_loading(model: str, tiny_painter: Path, tmp_path: Path) -> None:
    pipe = PaiPainterPipeline.from_pretrained(DEMO_MODEL if model == "demo" else tiny_painter)
    expected = tokens_of(pipe)
    for trip in ("first", "second"):
        folder = tmp_path / trip
        pipe.save_pretrained(folder)
        assert {path.name for path in folder.iterdir()} >= {"model_index.json", "model.safetensors"}
        assert not [path for path in folder.iterdir() if path.is_dir()], "one copy of everything, at the root"
        assert torch.equal(tokens_of(PaiPainterPipeline.from_pretrained(folder)), expected)
        pipe = DiffusionPipeline.from_pretrained(folder, **TRUST)
        assert type(pipe) is PaiPainterPipeline
        assert pipe.name_or_path == folder
        assert torch.equal(tokens_of(pipe), expected)
        again = PaiPainterPipeline(AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder))
        assert torch.equal(tokens_of(again), expected)


def test_diffusers_runs_nothing_without_leave(pipe: PaiPainterPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(tmp_path / "saved")


@pytest.mark.usefixtures("modules_cache")
def test_diffusers_passes_its_options_on(pipe: PaiPainterPipeline, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    pipe.save_pretrained(folder, max_shard_size="300KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    options = {"torch_dtype": {"default": torch.bfloat16}, "device_map": "cpu", "use_safetensors": True}
    assert DiffusionPipeline.from_pretrained(folder, **TRUST, **options).dtype == torch.bfloat16
    given = DiffusionPipeline.from_pretrained(folder, **TRUST, model=pipe.model, processor=pipe.processor)
    assert given.model is pipe.model
    assert given.processor is pipe.processor
    with pytest.raises(TypeError, match="no option 'torch_dtpye'"):
        DiffusionPipeline.from_pretrained(folder, **TRUST, torch_dtpye=torch.bfloat16)


def test_precision_by_component_and_by_name(tiny_painter: Path) -> None:
    def precision(**options: Any) -> torch.dtype:
        return PaiPainterPipeline.from_pretrained(tiny_painter, **options).dtype

    assert precision(torch_dtype={"model": torch.bfloat16}) == torch.bfloat16
    assert precision(dtype={"default": torch.float16}) == torch.float16
    assert precision(torch_dtype={"model": torch.bfloat16, "default": torch.float16}) == torch.bfloat16
    assert precision(torch_dtype={}) == torch.float32
    assert precision(torch_dtype="bfloat16") == torch.bfloat16
    assert precision(dtype=torch.float16) == torch.float16


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"torch_dtype": {"transformer": torch.float16}}, "may name the component 'model' only, got 'transformer'"),
        ({"torch_dtype": 16}, "must be a precision such as torch.bfloat16"),
        (
            {"quantization_config": PipelineQuantizationConfig(quant_mapping={"unet": FineGrainedFP8Config()})},
            "may name the component 'model' only, got 'unet'",
        ),
        ({"torch_dtype": torch.int8}, "not a floating-point dtype"),
        ({"dtype": "half a byte"}, "a string representation of a valid"),
        ({"device_map": "mars"}, "device_map .* but found mars"),
        ({"max_memory": {"cpu": "1GB"}}, "`max_memory` and `offload_folder` go with `device_map='balanced'`"),
        ({"offload_folder": "somewhere"}, "`max_memory` and `offload_folder` go with `device_map='balanced'`"),
        ({"low_cpu_mem_usage": False}, "`low_cpu_mem_usage=False` isn't supported"),
    ],
)
def test_options_that_make_no_sense_are_named(tiny_painter: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        PaiPainterPipeline.from_pretrained(tiny_painter, **options)


def test_devices(tiny_painter: Path, pipe: PaiPainterPipeline) -> None:
    on_cpu = PaiPainterPipeline.from_pretrained(tiny_painter, device_map="cpu")
    assert on_cpu.device.type == "cpu"
    assert on_cpu.hf_device_map == "cpu"
    assert torch.equal(tokens_of(on_cpu), tokens_of(pipe))
    balanced = PaiPainterPipeline.from_pretrained(tiny_painter, device_map="balanced", max_memory={"cpu": "1GB"})
    assert torch.equal(tokens_of(balanced), tokens_of(pipe))


def test_variants(pipe: PaiPainterPipeline, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    pipe.to(torch.float16).save_pretrained(folder, variant="fp16")
    assert list(folder.glob("*.safetensors")) == [folder / "model.fp16.safetensors"]
    loaded = PaiPainterPipeline.from_pretrained(folder, variant="fp16", torch_dtype=torch.float16)
    for name, weight in load_file(folder / "model.fp16.safetensors").items():
        assert torch.equal(loaded.model.state_dict()[name], weight)
    assert PaiPainterPipeline.from_pretrained(folder, variant="fp16").dtype == torch.float32
    for variant in (None, "bf16"):
        with pytest.raises(OSError, match=r"model\.(bf16\.)?safetensors"):
            PaiPainterPipeline.from_pretrained(folder, variant=variant)


def test_subfolders(tiny_painter: Path, pipe: PaiPainterPipeline, tmp_path: Path) -> None:
    shutil.copytree(tiny_painter, tmp_path / "all" / "tiny")
    loaded = PaiPainterPipeline.from_pretrained(tmp_path / "all", subfolder="tiny")
    assert torch.equal(tokens_of(loaded), tokens_of(pipe))


@pytest.mark.usefixtures("offline")
def test_a_subfolder_of_a_repository(tiny_painter: Path, pipe: PaiPainterPipeline, tmp_path: Path) -> None:
    """In the Hub client's cache."""
    repository, commit = tmp_path / "models--me--painters", "0123456789" * 4
    shutil.copytree(tiny_painter, repository / "snapshots" / commit / "tiny")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    loaded = PaiPainterPipeline.from_pretrained("me/painters", subfolder="tiny", cache_dir=tmp_path)
    assert torch.equal(tokens_of(loaded), tokens_of(pipe))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_safetensors_or_not(tiny_painter: Path) -> None:
    assert PaiPainterPipeline.from_pretrained(tiny_painter, use_safetensors=True, low_cpu_mem_usage=True)
    with pytest.raises(OSError, match=r"pytorch_model\.bin"):
        PaiPainterPipeline.from_pretrained(tiny_painter, use_safetensors=False)


def test_components_that_are_given_are_used(tiny_painter: Path, pipe: PaiPainterPipeline, tmp_path: Path) -> None:
    config_only = tmp_path / "no-weights"
    shutil.copytree(tiny_painter, config_only, ignore=shutil.ignore_patterns("*.safetensors"))
    loaded = PaiPainterPipeline.from_pretrained(config_only, model=pipe.model)
    assert loaded.model is pipe.model
    assert loaded.processor is not pipe.processor
    assert PaiPainterPipeline.from_pretrained(tiny_painter, processor=pipe.processor).processor is pipe.processor
    assert PaiPainterPipeline.from_pretrained(tiny_painter, model=pipe.model, torch_dtype=torch.float32).model
    for options in ({"torch_dtype": torch.float16}, {"device_map": "cpu"}, {"variant": "fp16"}):
        with pytest.raises(ValueError, match=f"`{next(iter(options))}` is for a model that is loaded here"):
            PaiPainterPipeline.from_pretrained(tiny_painter, model=pipe.model, **options)


@pytest.mark.parametrize("kind", ["diffusers", "transformers"])
def test_int8_weights(kind: str, tiny_painter: Path, pipe: PaiPainterPipeline) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    quantization_config: Any = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    if kind == "diffusers":
        quantization_config = PipelineQuantizationConfig(quant_mapping={"model": quantization_config})
    loaded = PaiPainterPipeline.from_pretrained(tiny_painter, quantization_config=quantization_config)
    assert "Int8" in type(loaded.model.model.layers[0].mlp.fc_1.weight).__name__
    ids = pipe.processor(text="红苹果", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(ids).logits, pipe.model(ids).logits, rtol=0.1, atol=0.1)


def test_options_of_saving(pipe: PaiPainterPipeline, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="saved as safetensors"):
        pipe.save_pretrained(tmp_path / "saved", safe_serialization=False)
    with pytest.raises(ValueError, match="pipeline's own `push_to_hub`"):
        pipe.save_pretrained(tmp_path / "saved", push_to_hub=True)
    with pytest.raises(TypeError, match="use_flashpack"):
        pipe.save_pretrained(tmp_path / "saved", use_flashpack=True)
    assert not (tmp_path / "saved").exists()


def test_a_new_pipeline_of_the_same_components(pipe: PaiPainterPipeline) -> None:
    expected = tokens_of(pipe)
    again = PaiPainterPipeline.from_pipe(PaiPainterPipeline.from_pipe(pipe))
    assert type(again) is PaiPainterPipeline
    assert again.components == pipe.components == {"model": pipe.model, "processor": pipe.processor}
    assert PaiPainterPipeline(**pipe.components).model is pipe.model
    assert torch.equal(tokens_of(again), expected)
    half = PaiPainterPipeline.from_pipe(pipe.to(torch.bfloat16))
    assert half.dtype == pipe.dtype == torch.bfloat16
    assert PaiPainterPipeline.from_pipe(pipe, torch_dtype=torch.float32).dtype == torch.float32
    with pytest.raises(TypeError, match="safety_checker"):
        PaiPainterPipeline.from_pipe(pipe, safety_checker=None)


def test_moving(pipe: PaiPainterPipeline) -> None:
    assert pipe.to("cpu", torch.bfloat16) is pipe
    assert (pipe.dtype, pipe.device.type) == (torch.bfloat16, "cpu")
    assert pipe.to(torch.float32).dtype == torch.float32


def test_sequential_cpu_offload(pipe: PaiPainterPipeline) -> None:
    expected = tokens_of(pipe)
    pipe.enable_sequential_cpu_offload(device="cpu")  # the hooks are the same wherever they move the weights to
    assert next(pipe.model.vqgan.parameters()).device.type == "meta"
    for _ in range(2):
        assert torch.equal(tokens_of(pipe), expected)
    pipe.remove_all_hooks()
    assert torch.equal(tokens_of(pipe), expected)


@pytest.mark.parametrize("offload_type", ["block_level", "leaf_level"])
def test_group_offload(pipe: PaiPainterPipeline, offload_type: str) -> None:
    expected = tokens_of(pipe)
    options = {"num_blocks_per_group": 1} if offload_type == "block_level" else {}
    pipe.enable_group_offload(torch.device("cpu"), offload_type=offload_type, **options)
    assert torch.equal(tokens_of(pipe), expected)


@pytest.mark.parametrize(
    "switch",
    [
        "enable_attention_slicing",
        "enable_xformers_memory_efficient_attention",
    ],
)
def test_switches_that_would_do_nothing_are_refused(pipe: PaiPainterPipeline, switch: str) -> None:
    with pytest.raises(ValueError, match="can't be changed here"):
        getattr(pipe, switch)()


def test_the_index_names_nothing_of_this_machine(pipe: PaiPainterPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index.keys() == {"_class_name", "model", "processor"}
    assert isinstance(pipe.model, PaiPainterForImageGeneration)
    assert isinstance(pipe.processor, PaiPainterProcessor)
