# SPDX-License-Identifier: Apache-2.0
"""The VQGAN, held against taming-transformers' numbers (golden data) and against itself."""

import copy
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import yaml
from model_fixtures import CODES, GOLDEN, PAINTERS, expected, golden_painter, vqgan_config
from safetensors.torch import load_file

from pai_painter import PaiPainterVQConfig, PaiPainterVQModel


class InertUnpickler(pickle.Unpickler):
    """Rebuilds the tensors of a PyTorch zip checkpoint; every other name in it becomes a class that does nothing."""

    def __init__(self, archive: zipfile.ZipFile, name: str):
        super().__init__(archive.open(name))
        self.archive, self.root = archive, name.rpartition("/")[0]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: torch.as_strided(storage, size, stride, offset)
        if module == "torch" and name.endswith("Storage"):
            return {"FloatStorage": torch.float32, "LongStorage": torch.int64}[name]
        # Python 3.11 rebuilds objects through __reduce__ and friends: arguments and state are swallowed.
        return type(name, (dict,), {"__init__": lambda *_, **__: None, "__setstate__": lambda *_: None})

    def persistent_load(self, pid: tuple) -> torch.Tensor:
        _, dtype, key, _, _ = pid
        return torch.frombuffer(bytearray(self.archive.read(f"{self.root}/data/{key}")), dtype=dtype)


@pytest.fixture(scope="module")
def taming_vqgan() -> PaiPainterVQModel:
    params = yaml.safe_load((GOLDEN / "taming_tiny/model.yaml").read_text(encoding="utf-8"))["model"]["params"]
    config = PaiPainterVQConfig.from_ddconfig(params["ddconfig"], params["n_embed"], params["embed_dim"])
    with zipfile.ZipFile(GOLDEN / "taming_tiny/last.ckpt") as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        weights = InertUnpickler(archive, name).load()["state_dict"]
    vqgan = PaiPainterVQModel(config).eval()
    vqgan.load_state_dict({name: weight for name, weight in weights.items() if not name.startswith("loss.")})
    return vqgan


@pytest.fixture(scope="module")
def vqgan() -> PaiPainterVQModel:
    return golden_painter().vqgan


def test_a_lightning_checkpoint_of_taming_gives_its_codes_latents_and_pixels(taming_vqgan: PaiPainterVQModel) -> None:
    golden = load_file(GOLDEN / "taming_tiny/expected.safetensors")
    with torch.no_grad():
        encoded = taming_vqgan.encode(golden["image"])
        decoded = taming_vqgan.decode(golden["codes"])
    assert torch.equal(encoded.image_tokens, golden["codes"])
    torch.testing.assert_close(encoded.quantized, golden["quantized"], atol=1e-5, rtol=0)
    torch.testing.assert_close(decoded, golden["reconstruction"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("folder", PAINTERS)
def test_an_easynlp_vqgan_gives_its_codes_and_pixels(folder: str) -> None:
    golden, vqgan = expected(folder), golden_painter(folder).vqgan
    with torch.no_grad():
        codes = vqgan.encode(golden["image"]).image_tokens
        assert torch.equal(codes, golden["codes"])
        torch.testing.assert_close(vqgan.decode(codes), golden["reconstruction"], atol=1e-5, rtol=0)
        torch.testing.assert_close(vqgan.decode(golden["greedy_codes"]), golden["generated"], atol=1e-5, rtol=0)


def test_calling_the_vqgan_encodes_and_decodes(vqgan: PaiPainterVQModel) -> None:
    output = vqgan(expected()["image"])
    assert torch.equal(output.image_tokens, expected()["codes"])
    assert torch.equal(output.pixel_values, vqgan.decode(expected()["codes"]))


def test_a_batch_of_pictures_has_the_codes_of_each_alone(vqgan: PaiPainterVQModel) -> None:
    image = expected()["image"]
    alone = torch.cat([vqgan.encode(picture[None]).image_tokens for picture in image])
    assert torch.equal(vqgan.encode(image).image_tokens, alone)
    together = vqgan.decode(alone)
    singles = torch.cat([vqgan.decode(codes[None]) for codes in alone])
    torch.testing.assert_close(together, singles, atol=1e-5, rtol=0)


def test_codes_are_in_raster_order(vqgan: PaiPainterVQModel) -> None:
    grid = vqgan.config.image_grid
    codes = torch.arange(CODES)[None]
    entries = vqgan.quantize(codes, grid)
    row, column = 1, 3
    assert torch.equal(entries[0, :, row, column], vqgan.quantize.embedding.weight[row * grid + column])
    assert torch.equal(vqgan.quantize.nearest(entries), codes)


def test_the_nearest_entry_is_that_of_smallest_squared_distance_and_the_first_of_equals() -> None:
    config = PaiPainterVQConfig(
        resolution=8, base_channels=4, channel_multiplier=[1], num_embeddings=6, embed_dim=3, norm_num_groups=2
    )
    codebook = PaiPainterVQModel(config).quantize
    with torch.no_grad():
        codebook.embedding.weight.normal_(generator=torch.Generator().manual_seed(0))
        codebook.embedding.weight[5] = codebook.embedding.weight[2]
    latents = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    latents[0, :, 0, 0] = codebook.embedding.weight[5].detach()
    vectors = latents.permute(0, 2, 3, 1).reshape(2, 16, 1, 3)
    distances = (vectors - codebook.embedding.weight).pow(2).sum(-1)
    found = codebook.nearest(latents)
    assert torch.equal(found, distances.argmin(-1))
    assert found[0, 0] == 2


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 16, 16), "encodes pictures of shape \\(batch, 3, 8, 8\\)"),
        ((3, 8, 8), r"got \(3, 8, 8\)"),
        ((1, 1, 8, 8), r"of shape \(batch, 3, 8, 8\), got \(1, 1, 8, 8\)"),
    ],
)
def test_pixels_of_another_shape_are_refused(vqgan: PaiPainterVQModel, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vqgan.encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, CODES - 1), (1, CODES + 1), (CODES,), (1, 4, 4)])
def test_too_few_or_too_many_codes_are_refused(vqgan: PaiPainterVQModel, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"decodes image tokens of shape \(batch, 16\)"):
        vqgan.decode(torch.zeros(shape, dtype=torch.long))


def test_f16_16384_has_its_76_073_859_parameters() -> None:
    with torch.device("meta"):
        vqgan = PaiPainterVQModel(PaiPainterVQConfig())
    assert vqgan.num_parameters() == 76_073_859
    assert (vqgan.config.image_grid, vqgan.config.num_image_tokens) == (16, 256)


def test_an_encoder_without_attention_has_none_and_its_decoder_keeps_it() -> None:
    config = vqgan_config()
    config.encoder_attention = False
    names = [name for name, _ in PaiPainterVQModel(config).named_parameters() if ".attn" in name]
    assert names
    assert all(name.startswith("decoder.") for name in names)


def test_a_code_says_nothing_of_distant_pixels_when_the_encoder_has_no_attention() -> None:
    sizes: dict[str, Any] = {"resolution": 64, "base_channels": 4, "channel_multiplier": [1, 1], "num_res_blocks": 1}
    sizes |= {"latent_channels": 4, "embed_dim": 4, "num_embeddings": 16, "norm_num_groups": 1}
    reach = {}
    for attention in (True, False):
        torch.manual_seed(0)
        vqgan = PaiPainterVQModel(PaiPainterVQConfig(attn_resolutions=[32], encoder_attention=attention, **sizes))
        for module in vqgan.modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.forward = torch.nn.Identity().forward  # it sees the whole picture, too
        pixels = torch.zeros(1, 3, 64, 64, requires_grad=True)
        vqgan.encode_latents(pixels)[0, :, 0, 0].sum().backward()
        reach[attention] = pixels.grad[0, :, 48:, 48:].abs().max().item()
    assert reach[False] == 0
    assert reach[True] > 0


def test_new_weights_are_those_that_taming_starts_from() -> None:
    vqgan = PaiPainterVQModel(vqgan_config())
    entries = vqgan.quantize.embedding.weight
    assert entries.abs().max() <= 1 / 64
    assert entries.std() > 0.5 / 64
    conv = vqgan.encoder.conv_in
    bound = (3 * 9) ** -0.5
    assert 0.9 * bound < conv.weight.abs().max() <= bound
    assert 0 < conv.bias.abs().max() <= bound
    assert torch.equal(vqgan.encoder.norm_out.weight, torch.ones(64))


def test_gradients_reach_every_weight_on_the_way_through_latents() -> None:
    vqgan = PaiPainterVQModel(vqgan_config())
    vqgan.decode_latents(vqgan.encode_latents(expected()["image"])).pow(2).mean().backward()
    without = [name for name, weight in vqgan.named_parameters() if weight.grad is None]
    assert without == ["quantize.embedding.weight"]


def test_dropout_is_for_training_only() -> None:
    config = vqgan_config()
    config.dropout = 0.5
    vqgan, image = PaiPainterVQModel(config), expected()["image"]
    assert not torch.equal(vqgan.train().encode_latents(image), vqgan.encode_latents(image))
    assert torch.equal(vqgan.eval().encode_latents(image), vqgan.encode_latents(image))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_vqgan_in_half_precision_paints_nearly_the_same(vqgan: PaiPainterVQModel, tmp_path: Path, dtype: Any) -> None:
    vqgan.save_pretrained(tmp_path)
    half = PaiPainterVQModel.from_pretrained(tmp_path, dtype=dtype)
    assert half.dtype == dtype
    with torch.no_grad():
        pixels = half.decode(expected()["codes"])
    assert pixels.dtype == dtype
    assert (pixels.float() - expected()["reconstruction"]).abs().mean() < 0.02


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_nearest_entry_is_found_in_single_precision(vqgan: PaiPainterVQModel, dtype: torch.dtype) -> None:
    """In half precision hundreds of entries are equally far from a latent."""
    codebook = copy.deepcopy(vqgan.quantize)
    codebook.embedding = torch.nn.Embedding(4096, vqgan.config.embed_dim)
    torch.nn.init.normal_(codebook.embedding.weight, mean=3.0, std=0.02, generator=torch.Generator().manual_seed(0))
    codebook.to(dtype)
    latents = codebook.embedding.weight[:64].T.reshape(1, -1, 8, 8)
    assert torch.equal(codebook.nearest(latents)[0], torch.arange(64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(codebook.nearest(latents.float())[0], torch.arange(64))


@torch.no_grad()
@pytest.mark.parametrize("offload", [accelerate.cpu_offload, lambda vqgan, device: hook_the_whole(vqgan)])
def test_encode_and_decode_work_under_offloading_hooks(vqgan: PaiPainterVQModel, offload: Any) -> None:
    pixels = torch.rand(1, 3, vqgan.config.resolution, vqgan.config.resolution) * 2 - 1
    tokens, decoded = vqgan.encode(pixels).image_tokens, vqgan.decode(vqgan.encode(pixels).image_tokens)
    offloaded = copy.deepcopy(vqgan)
    offload(offloaded, torch.device("cpu"))
    assert torch.equal(offloaded.encode(pixels).image_tokens, tokens)
    assert torch.equal(offloaded.decode(tokens), decoded)


def hook_the_whole(vqgan: PaiPainterVQModel) -> None:
    """As `enable_model_cpu_offload` does: weights are elsewhere until the hook runs, here as float64."""

    class BringHome(accelerate.hooks.ModelHook):
        def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple:
            return (module.float() and args), kwargs

    accelerate.hooks.add_hook_to_module(vqgan.double(), BringHome())
