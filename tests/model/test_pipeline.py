# SPDX-License-Identifier: Apache-2.0
"""Captions to pictures: the pipeline, with a tiny painter of random weights."""

import json
import logging
import shutil
import threading
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from PIL import Image
from transformers import AutoModel, AutoProcessor

from pai_painter import (
    PaiPainterForImageGeneration,
    PaiPainterPipeline,
    PaiPainterProcessor,
    PaiPainterVQConfig,
)
from pai_painter.model.sampling_pai_painter import GumbelSampler

GOLDEN = Path(__file__).parents[1] / "golden"
CODES, SIDE = 16, 16


@pytest.fixture
def folder(tiny_painter: Path, tmp_path: Path) -> Path:
    """The tiny painter, to be changed."""
    return Path(shutil.copytree(tiny_painter, tmp_path / "painter"))


def test_pictures_come_in_the_order_of_the_captions(pipe) -> None:
    output = pipe(["红苹果", "一只熊猫"], num_images_per_prompt=2, seed=7)
    assert [type(image) for image in output.images] == [Image.Image] * 4
    assert {image.size for image in output.images} == {(SIDE, SIDE)}
    assert output.image_tokens.shape == (4, CODES)
    assert output.seeds == [7, 8, 9, 10]
    assert len(output.scores) == 4
    assert all(score < 0 for score in output.scores)
    for row, caption in enumerate(["红苹果", "一只熊猫"]):
        alone = pipe(caption, num_images_per_prompt=2, seed=7 + 2 * row)
        assert torch.equal(alone.image_tokens, output.image_tokens[2 * row : 2 * row + 2])
    assert not torch.equal(output.image_tokens[:2], output.image_tokens[2:])


def test_output_types(pipe) -> None:
    outputs = {kind: pipe("红苹果", seed=1, output_type=kind).images for kind in ("pil", "np", "pt", "latent")}
    assert outputs["np"].shape == (1, SIDE, SIDE, 3)
    assert outputs["pt"].shape == (1, 3, SIDE, SIDE)
    assert outputs["latent"].shape == (1, CODES)
    np.testing.assert_array_equal(outputs["np"], outputs["pt"].permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(np.asarray(outputs["pil"][0]), (outputs["np"][0] * 255).round().astype(np.uint8))
    images, scores, seeds, codes = pipe("红苹果", seed=1, output_type="latent", return_dict=False)
    assert torch.equal(images, codes)
    assert len(scores) == len(seeds) == 1


def test_equal_captions_in_a_call_give_different_pictures(pipe) -> None:
    for options in ({"seed": 3}, {}, {"generator": torch.Generator().manual_seed(1)}):
        output = pipe(["红苹果"] * 4, **options)
        assert len(set(output.seeds)) == len({tuple(tokens.tolist()) for tokens in output.image_tokens}) == 4
    listed = pipe(["红苹果"] * 2, seed=[5, np.int64(5)])
    assert torch.equal(listed.image_tokens[0], listed.image_tokens[1])
    assert listed.seeds == [5, 5]


def test_seeds(pipe) -> None:
    four = pipe("红苹果", num_images_per_prompt=4, seed=7)
    assert len({tuple(codes.tolist()) for codes in four.image_tokens}) == 4
    for place, seed in enumerate(four.seeds):
        assert torch.equal(pipe("红苹果", seed=seed).image_tokens[0], four.image_tokens[place])
    drawn = [pipe("红苹果", generator=torch.Generator().manual_seed(3)).seeds for _ in range(2)]
    assert drawn[0] == drawn[1]
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    assert len(set(pipe("红苹果", num_images_per_prompt=2, generator=generators).seeds)) == 2


def test_best_of_keeps_the_likeliest(pipe) -> None:
    candidates = pipe("红苹果", num_images_per_prompt=6, seed=7, best_of=1)
    best = pipe("红苹果", num_images_per_prompt=2, seed=7, best_of=3)
    for picture in range(2):
        scores = candidates.scores[3 * picture : 3 * picture + 3]
        chosen = 3 * picture + scores.index(max(scores))
        assert best.seeds[picture] == 7 + chosen
        assert torch.equal(best.image_tokens[picture], candidates.image_tokens[chosen])
        assert best.scores[picture] == pytest.approx(candidates.scores[chosen], abs=1e-5)


def test_options_left_out_are_the_models_recommendation(pipe) -> None:
    likeliest = pipe("红苹果", seed=1, top_k=1).image_tokens
    assert not torch.equal(pipe("红苹果", seed=1).image_tokens, likeliest)
    pipe.model.generation_config.top_k = 1
    pipe.model.generation_config.best_of = 2
    output = pipe("红苹果", seed=5)
    assert torch.equal(output.image_tokens, likeliest)
    assert output.seeds[0] in (5, 6)


def test_the_vqgan_runs_once_a_batch(pipe) -> None:
    calls = []
    pipe.model.vqgan.decoder.register_forward_hook(lambda *_: calls.append(1))
    pipe(["红苹果", "熊猫"], num_images_per_prompt=2, best_of=2, seed=1)
    assert len(calls) == 1
    pipe("红苹果", output_type="latent")
    assert len(calls) == 1


def test_the_progress_bar_counts_codes(pipe) -> None:
    screen = StringIO()
    pipe.set_progress_bar_config(file=screen, mininterval=0)
    pipe("红苹果", best_of=2)
    assert f"{CODES}/{CODES}" in screen.getvalue()
    screen.truncate(0)
    pipe.set_progress_bar_config(file=screen, disable=True)
    pipe("红苹果")
    assert not screen.getvalue().strip("\0")


def test_the_callback_sees_each_token(pipe) -> None:
    seen = []

    def look(pipeline, step, timestep, callback_kwargs):
        assert pipeline is pipe
        assert step == timestep
        seen.append(callback_kwargs["image_tokens"])
        return callback_kwargs

    output = pipe(["红苹果", "熊猫"], seed=1, callback_on_step_end=look)
    assert [tokens.shape for tokens in seen] == [(2, step + 1) for step in range(CODES)]
    assert pipe.num_timesteps == CODES
    assert torch.equal(seen[-1], output.image_tokens)
    assert torch.equal(pipe(["红苹果", "熊猫"], seed=1).image_tokens, output.image_tokens)

    wishes = []
    pipe("红苹果", callback_on_step_end=lambda *rest: wishes.append(rest[-1]), callback_on_step_end_tensor_inputs=[])
    assert wishes == [{}] * CODES


def by_generate(pipe) -> None:
    pipe.model.generation_config.repetition_penalty = 1.0 + 1e-9  # a setting that only `generate` knows


@pytest.mark.parametrize("way", [lambda pipe: None, by_generate], ids=["loop", "generate"])
@pytest.mark.parametrize("prompt", ["红苹果", ["红苹果", "熊猫"]], ids=["speculative", "batch"])
def test_what_a_callback_changes_is_painted_on(pipe, way, prompt) -> None:
    """Every third token is set to 5, twice in the past of the token that was just drawn."""
    way(pipe)

    def change(pipeline, step, timestep, callback_kwargs):
        tokens = callback_kwargs["image_tokens"].clone()
        if step in (3, 7, CODES - 1):
            tokens[:, step - 1 if step < 8 else step] = 5
        return {"image_tokens": tokens}

    changed = pipe(prompt, seed=1, best_of=1, callback_on_step_end=change)
    usual = pipe(prompt, seed=1, best_of=1).image_tokens
    tokens = changed.image_tokens
    assert (tokens[:, [2, 6, CODES - 1]] == 5).all()
    assert torch.equal(tokens[:, :2], usual[:, :2])
    # What follows is what the model says after the changed tokens, with the same noise.
    ids = pipe.processor(text=prompt, return_tensors="pt")["input_ids"]
    recommended = pipe.model.generation_config
    sampler = GumbelSampler(changed.seeds, 8, recommended.temperature, recommended.top_k, recommended.top_p)
    logits = pipe.model(torch.cat([ids, tokens], 1)).logits[:, 7:-1]
    for position in (4, 5, 8, 9, CODES - 2):
        assert torch.equal(sampler.draw(logits[:, position], position), tokens[:, position])


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        ({"latents": None}, "may return `image_tokens`, got latents"),
        ({"image_tokens": torch.zeros(1, 99, dtype=torch.long)}, r"of shape \(1, 1\), got .*\(1, 99\)"),
        ({"image_tokens": torch.full((1, 1), 64)}, "from 0 to 63 of shape"),
        ({"image_tokens": torch.zeros(1, 1)}, "must be whole numbers"),
    ],
)
def test_what_a_callback_may_not_return(pipe, returned, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        pipe("红苹果", best_of=1, callback_on_step_end=lambda *_: returned)
    assert pipe("红苹果").image_tokens.shape == (1, CODES)


def test_callback_objects_of_diffusers(pipe) -> None:
    class Watch(PipelineCallback):
        tensor_inputs = ["image_tokens"]
        steps: list[int] = []

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            self.steps.append(int(pipeline.num_timesteps * self.config.cutoff_step_ratio) - step_index)
            return callback_kwargs

    pipe("红苹果", callback_on_step_end=Watch(cutoff_step_ratio=0.5), callback_on_step_end_tensor_inputs=["nothing"])
    assert Watch.steps == [CODES // 2 - step for step in range(CODES)]
    pipe("红苹果", callback_on_step_end=MultiPipelineCallbacks([Watch(0.5), Watch(0.5)]))
    assert len(Watch.steps) == 3 * CODES


def test_interrupt(pipe) -> None:
    def stop(pipeline, step, timestep, callback_kwargs):
        pipeline._interrupt = step == 5
        assert pipeline.interrupt == (step == 5)
        return callback_kwargs

    output = pipe("红苹果", seed=1, callback_on_step_end=stop)
    assert output.image_tokens.shape == (1, 6)
    assert output.scores == [None]  # of a part it would be no measure of the picture
    assert output.images[0].size == (SIDE, SIDE)
    assert not pipe.interrupt  # it belonged to that call
    whole = pipe("红苹果", seed=1)
    assert torch.equal(whole.image_tokens[:, :6], output.image_tokens)
    assert whole.image_tokens.shape == (1, CODES)


def test_an_interruption_ends_its_own_call_only(pipe) -> None:
    """Two threads paint with one pipeline; one interrupts in the middle of the other."""
    wanted = pipe(["熊猫"], seed=2).image_tokens
    begun, interrupted, found = threading.Event(), threading.Event(), []

    def wait(pipeline, step, timestep, callback_kwargs):
        begun.set()
        assert interrupted.wait(60)
        return callback_kwargs

    other = threading.Thread(target=lambda: found.append(pipe(["熊猫"], seed=2, callback_on_step_end=wait)))
    other.start()
    assert begun.wait(60)

    def stop(pipeline, step, timestep, callback_kwargs):
        pipeline._interrupt = True
        return callback_kwargs

    assert pipe("红苹果", seed=1, callback_on_step_end=stop).image_tokens.shape == (1, 1)
    interrupted.set()
    other.join(60)
    assert torch.equal(found[0].image_tokens, wanted)


def test_a_thread_without_a_call_ends_those_that_run(pipe) -> None:
    """As the button of a page does."""

    def press(pipeline, step, timestep, callback_kwargs):
        button = threading.Thread(target=lambda: setattr(pipe, "_interrupt", True))
        button.start()
        button.join()
        return callback_kwargs

    assert pipe("红苹果", seed=1, callback_on_step_end=press).image_tokens.shape == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"prompt": ""}, "'' is empty"),
        ({"prompt": ["红苹果", " \t"]}, "is empty"),
        ({"prompt": "\u200b\u0007"}, "is empty"),
        ({"prompt": "\U0001fae8\U0001fae8"}, "knows no word"),
        ({"prompt": []}, "`prompt` must be"),
        ({"prompt": None}, "`prompt` must be"),
        ({"prompt": ["红苹果", 3]}, "must be a string"),
        ({"output_type": "jpeg"}, "`output_type` must be one of pil, np, pt, latent"),
        ({"seed": 1, "generator": torch.Generator()}, "not both"),
        ({"seed": -1}, "`seed` must be"),
        ({"top_k": 0}, "`top_k` must be"),
        ({"top_p": 0.0}, "`top_p` must"),
        ({"temperature": 0.0}, "`top_k=1`"),
        ({"best_of": 0}, "`best_of` must be"),
        ({"num_images_per_prompt": 0}, "`num_images_per_prompt` must be"),
        ({"callback_on_step_end_tensor_inputs": ["latents"]}, "may hold `image_tokens`, got latents"),
    ],
)
def test_errors(pipe, arguments, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        pipe(**{"prompt": "红苹果", **arguments})


def test_unknown_pieces_are_named(pipe, caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="pai_painter"):
        pipe("红苹果")
        assert not caplog.records
        pipe("红\U0001fae8苹果")
    assert "\U0001fae8" in caplog.text
    assert len(caplog.records) == 1


def test_saved_is_loaded(pipe, tmp_path) -> None:
    pipe.save_pretrained(tmp_path / "saved")
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "processor_config.json"} <= names
    assert not any(name.endswith(".bin") for name in names)
    again = PaiPainterPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    assert again.name_or_path == str(tmp_path / "saved")
    assert torch.equal(
        again("红苹果", seed=1, output_type="pt").images, pipe("红苹果", seed=1, output_type="pt").images
    )
    assert isinstance(AutoModel.from_pretrained(tmp_path / "saved"), PaiPainterForImageGeneration)
    assert isinstance(AutoProcessor.from_pretrained(tmp_path / "saved"), PaiPainterProcessor)


def test_precision(pipe, tmp_path) -> None:
    pipe.to(torch.bfloat16).save_pretrained(tmp_path)
    assert PaiPainterPipeline.from_pretrained(tmp_path).dtype == torch.float32
    assert PaiPainterPipeline.from_pretrained(tmp_path, torch_dtype="auto").dtype == torch.bfloat16
    for option in ("torch_dtype", "dtype"):
        half = PaiPainterPipeline.from_pretrained(tmp_path, **{option: torch.float16})
        half.set_progress_bar_config(disable=True)
        assert half.dtype == torch.float16
        assert half("红苹果").images[0].size == (SIDE, SIDE)
    with pytest.raises(ValueError, match="please give one of them"):
        PaiPainterPipeline.from_pretrained(tmp_path, torch_dtype=torch.float16, dtype=torch.float32)


def test_options_of_loading(tiny_painter) -> None:
    pipe = PaiPainterPipeline.from_pretrained(tiny_painter, attn_implementation="eager", local_files_only=True)
    assert pipe.model.config._attn_implementation == "eager"
    with pytest.raises(TypeError, match="attention"):
        PaiPainterPipeline.from_pretrained(tiny_painter, attention="eager")


def test_easynlp_folder() -> None:
    dims = json.loads((GOLDEN / "easynlp_tiny" / "dims.json").read_text())
    vq_config = PaiPainterVQConfig.from_ddconfig(dims["ddconfig"], dims["n_embed"], dims["embed_dim"])
    pipe = PaiPainterPipeline.from_pretrained(GOLDEN / "easynlp_tiny", vq_config=vq_config)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.processor.text_length == 32
    assert pipe.processor.image_processor.size == {"shortest_edge": 8}
    word = next(word for word in pipe.processor.tokenizer.get_vocab() if len(word) == 1 and word.isalnum())
    assert pipe(word, seed=1).images[0].size == (8, 8)
    with pytest.raises(ValueError, match="vq_config"):
        PaiPainterPipeline.from_pretrained(GOLDEN / "easynlp_tiny")


def test_model_cpu_offload(pipe) -> None:
    def paint() -> torch.Tensor:
        return pipe(["红苹果", "熊猫"], seed=1, output_type="pt").images

    wanted = paint()
    pipe.enable_model_cpu_offload(device="cpu")  # the hooks are the same wherever they move the model to
    assert len(pipe._all_hooks) == 1
    assert hasattr(pipe.model, "_hf_hook")
    for _ in range(2):
        assert torch.equal(paint(), wanted)
        assert hasattr(pipe.model, "_hf_hook")
    pipe.remove_all_hooks()
    assert not pipe._all_hooks
    assert not hasattr(pipe.model, "_hf_hook")
    assert torch.equal(paint(), wanted)


def test_layer_by_layer_offload(pipe) -> None:
    wanted = pipe("红苹果", seed=1, output_type="pt").images
    cpu_offload(pipe.model, torch.device("cpu"))
    assert next(pipe.model.vqgan.parameters()).device.type == "meta"  # each layer brings its weights when it is called
    assert torch.equal(pipe("红苹果", seed=1, output_type="pt").images, wanted)


def test_model_and_processor_must_belong_together(pipe) -> None:
    pipe.processor.tokenizer.model_max_length = 5
    with pytest.raises(ValueError, match="`text_length` of its vocabulary and settings is 5 instead of 8"):
        PaiPainterPipeline(pipe.model, pipe.processor)


def test_no_such_model(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in (str(tmp_path / "nowhere"), "./nowhere", "nowhere", "~/painter", "a/b/c"):
        with pytest.raises(OSError, match="is neither a local folder nor"):
            PaiPainterPipeline.from_pretrained(name)
    with pytest.raises(OSError, match="nobody/nothing is neither a local folder nor available on the Hub"):
        PaiPainterPipeline.from_pretrained("nobody/nothing")
    with pytest.raises(OSError, match="is neither a local folder nor"):
        PaiPainterPipeline.from_pretrained(__file__)


def test_a_folder_that_is_no_painter(folder, tiny_painter) -> None:
    with pytest.raises(ValueError, match="is for EasyNLP's checkpoints only"):
        PaiPainterPipeline.from_pretrained(tiny_painter, vq_config={})
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"contains no painter: the model_type .* is 'bert'"):
        PaiPainterPipeline.from_pretrained(folder)
    for damaged in ("[]", "7"):
        (folder / "config.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"The config\.json of .* must hold a JSON object"):
            PaiPainterPipeline.from_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "pai_pa')
    with pytest.raises(ValueError, match=r"The config\.json of .* is damaged"):
        PaiPainterPipeline.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(OSError, match=r"it has no config\.json"):
        PaiPainterPipeline.from_pretrained(folder)


@pytest.mark.parametrize("kept", [0, 5, 100_000, -1])
def test_weights_that_were_cut_off(folder, kept) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(ValueError, match="are damaged or truncated"):
        PaiPainterPipeline.from_pretrained(folder)


@pytest.mark.parametrize("kept", [0, 100, 5000, -1])
def test_pickled_weights_that_were_cut_off(tmp_path, kept) -> None:
    folder = Path(shutil.copytree(GOLDEN / "easynlp_tiny", tmp_path / "easynlp"))
    dims = json.loads((folder / "dims.json").read_text())
    vq_config = PaiPainterVQConfig.from_ddconfig(dims["ddconfig"], dims["n_embed"], dims["embed_dim"])
    weights = folder / "pytorch_model.bin"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(ValueError, match="are damaged or truncated"):
        PaiPainterPipeline.from_pretrained(folder, vq_config=vq_config)
