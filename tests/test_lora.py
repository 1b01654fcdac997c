# SPDX-License-Identifier: Apache-2.0
"""Adapters: added, trained, saved, loaded, fused and merged; and folders that are none."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from model_fixtures import golden_painter, vqgan_config
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from typer.testing import CliRunner

from pai_painter import DEMO_MODEL, PaiPainterForImageGeneration, PaiPainterPipeline, PaiPainterProcessor
from pai_painter.cli import app
from pai_painter.lora import add_lora, has_lora, load_painter, merge_lora, save_lora
from pai_painter.model.model_files_pai_painter import portable_base_name, read_adapter_folder
from pai_painter.model_info import describe_model

RANK = 3
SAME = {"rtol": 1e-4, "atol": 1e-5}  # merged and unmerged weights add up in another order


def load(folder: Path | str, **options: object) -> PaiPainterForImageGeneration:
    return PaiPainterForImageGeneration.from_pretrained(folder, **options)


def ids_of(painter: PaiPainterForImageGeneration) -> torch.Tensor:
    """Two whole sequences, captions and codes."""
    config, draw = painter.config, torch.Generator().manual_seed(5)
    captions = torch.randint(config.image_vocab_size, config.vocab_size, (2, config.text_length), generator=draw)
    codes = torch.randint(config.image_vocab_size, (2, config.num_image_tokens), generator=draw)
    return torch.cat([captions, codes], dim=1)


@torch.no_grad()
def logits_of(painter: PaiPainterForImageGeneration) -> torch.Tensor:
    return painter.eval()(ids_of(painter)).logits


def trained_of(painter: PaiPainterForImageGeneration) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in painter.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def make_noticeable(painter: PaiPainterForImageGeneration, seed: int = 0) -> None:
    """As if it had been trained far."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in trained_of(painter).values():
        parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)


def loss_of(painter: PaiPainterForImageGeneration) -> torch.Tensor:
    ids = ids_of(painter)
    return painter(ids, labels=ids.index_fill(1, torch.arange(painter.config.text_length), -100), use_cache=False).loss


def train_a_step(painter: PaiPainterForImageGeneration, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    loss = loss_of(painter)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def edit_settings(folder: Path, **changes: object) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}), encoding="utf-8")


@pytest.fixture
def adapter(tiny_painter: Path, tmp_path: Path) -> Path:
    """An adapter of the tiny painter that makes a difference."""
    painter = load(tiny_painter)
    add_lora(painter, RANK)
    make_noticeable(painter)
    save_lora(painter, tmp_path / "adapter")
    return tmp_path / "adapter"


# -- adding


def test_a_fresh_adapter_changes_nothing(tiny_painter: Path) -> None:
    painter = load(tiny_painter)
    expected = logits_of(painter)
    add_lora(painter, RANK)
    assert type(painter) is PaiPainterForImageGeneration
    assert torch.equal(logits_of(painter), expected)


def test_the_formula_gives_the_number_of_trained_parameters(tiny_painter: Path) -> None:
    painter = load(tiny_painter)
    add_lora(painter, RANK)
    width, inner, layers = (
        painter.config.hidden_size,
        painter.config.intermediate_size,
        painter.config.num_hidden_layers,
    )
    expected = layers * RANK * (4 * (width + width) + 2 * (width + inner))
    assert sum(parameter.numel() for parameter in trained_of(painter).values()) == expected


@pytest.mark.parametrize(
    ("target_modules", "layers"),
    [
        (["q_proj"], {"model.layers.0.attn.q_proj", "model.layers.1.attn.q_proj"}),
        (["fc_2", "lm_head"], {"model.layers.0.mlp.fc_2", "model.layers.1.mlp.fc_2", "lm_head"}),
        (["embed_tokens"], {"model.embed_tokens"}),
    ],
)
def test_targets_are_what_was_named_and_never_the_vqgan(
    tiny_painter: Path, target_modules: list[str], layers: set[str]
) -> None:
    painter = load(tiny_painter)
    add_lora(painter, RANK, target_modules=target_modules)
    assert {name.split(".lora_")[0] for name in trained_of(painter)} == layers


def test_a_layer_of_the_vqgan_with_an_adapted_name_stays_as_it_is(tiny_painter: Path) -> None:
    painter = load(tiny_painter)
    painter.vqgan.encoder.attn = torch.nn.Module()
    painter.vqgan.encoder.attn.q_proj = torch.nn.Linear(2, 2)
    add_lora(painter, RANK)
    assert not any(name.startswith("vqgan.") for name in trained_of(painter))
    assert type(painter.vqgan.encoder.attn.q_proj) is torch.nn.Linear


def test_alpha_is_the_rank_by_default_and_scales_otherwise(tiny_painter: Path) -> None:
    scales = []
    for alpha in (None, 6):
        painter = load(tiny_painter)
        add_lora(painter, RANK, alpha)
        scales.append(painter.model.layers[0].attn.q_proj.scaling["default"])
    assert scales == [1.0, 2.0]


def test_the_adapter_of_a_half_precision_painter_is_trained_in_float32(tiny_painter: Path) -> None:
    painter = load(tiny_painter, dtype=torch.bfloat16)
    add_lora(painter, RANK)
    assert {parameter.dtype for parameter in trained_of(painter).values()} == {torch.float32}
    assert torch.isfinite(train_a_step(painter, torch.optim.AdamW(trained_of(painter).values(), lr=1e-3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "`rank` and `alpha` must be at least 1, .* got 0, 0"),
        ({"rank": 2, "alpha": 0}, "`rank` and `alpha` must be at least 1, .* got 2, 0"),
        ({"rank": 2, "dropout": 1.0}, r"`dropout` in \[0, 1\), got 2, 2, 1.0"),
        (
            {"rank": 2, "target_modules": ["q_proj", "conv_in"]},
            "must be a list of some of q_proj, .*embed_tokens, got .*conv_in",
        ),
        ({"rank": 2, "target_modules": "q_proj"}, "must be a list of some of .*, got 'q_proj'"),
        ({"rank": 2, "target_modules": []}, r"must be a list of some of .*, got \[\]"),
    ],
)
def test_wrong_options_are_named(tiny_painter: Path, options: dict, message: str) -> None:
    painter = load(tiny_painter)
    with pytest.raises(ValueError, match=message):
        add_lora(painter, **options)
    assert not has_lora(painter)


def test_a_second_adapter_is_refused(tiny_painter: Path) -> None:
    painter = load(tiny_painter)
    add_lora(painter, RANK)
    with pytest.raises(ValueError, match="has an adapter already: please merge or unload it first"):
        add_lora(painter, RANK)


def test_without_peft_the_command_says_how_to_install_it(
    tiny_painter: Path, adapter: Path, pipe: PaiPainterPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    for use in (lambda: add_lora(pipe.model, RANK), lambda: pipe.load_lora_weights(adapter)):
        with pytest.raises(ModuleNotFoundError) as error:
            use()
        assert error.value.name == "peft"
    refused = CliRunner().invoke(app, ["merge", str(adapter), str(tmp_path / "merged")])
    assert refused.exit_code == 2
    assert refused.stderr == 'Error: This command needs peft: please run `pip install "pai-painter[train]"`.\n'


# -- training


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_trains_the_adapter_alone(tiny_painter: Path, checkpointing: bool) -> None:
    painter = load(tiny_painter)
    torch.manual_seed(1)
    add_lora(painter, RANK)
    if checkpointing:
        painter.activation_checkpointing_enable()
    painter.train()
    before = {name: parameter.detach().clone() for name, parameter in painter.named_parameters()}
    optimizer = torch.optim.AdamW(trained_of(painter).values(), lr=1e-2)
    losses = [train_a_step(painter, optimizer) for _ in range(3)]
    assert losses[2] < losses[0]
    changed = {name for name, parameter in painter.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == set(trained_of(painter))


def test_gradient_checkpointing_gives_the_same_gradients(tiny_painter: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        painter = load(tiny_painter)
        add_lora(painter, RANK)
        make_noticeable(painter)
        if checkpointing:
            painter.activation_checkpointing_enable()
        painter.train()
        loss_of(painter).backward()
        gradients.append([parameter.grad for parameter in trained_of(painter).values()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_a_checkpoint_goes_on_exactly(tiny_painter: Path, tmp_path: Path) -> None:
    """Two steps, a checkpoint and two more, against the checkpoint in a new process's place and two more."""

    def start() -> tuple[Accelerator, PaiPainterForImageGeneration, torch.optim.Optimizer]:
        accelerator = Accelerator(cpu=True)
        painter = load(tiny_painter)
        add_lora(painter, RANK)
        make_noticeable(painter, seed=len(list(tmp_path.iterdir())))  # another start each time: loading must undo it
        painter, optimizer = accelerator.prepare(painter, torch.optim.AdamW(trained_of(painter).values(), lr=1e-2))
        return accelerator, painter, optimizer

    def go_on(painter: PaiPainterForImageGeneration, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(2):
            train_a_step(painter, optimizer)

    accelerator, painter, optimizer = start()
    go_on(painter, optimizer)
    accelerator.save_state(tmp_path / "checkpoint")
    go_on(painter, optimizer)
    accelerator, again, optimizer = start()
    accelerator.load_state(tmp_path / "checkpoint")
    go_on(again, optimizer)
    for name, weight in painter.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


# -- saving and loading


def test_saved_is_loaded_by_pipeline_model_automodel_and_peft(tiny_painter: Path, adapter: Path) -> None:
    painter = load(tiny_painter)
    add_lora(painter, RANK)
    make_noticeable(painter)
    expected = logits_of(painter)
    files = {file.name for file in adapter.iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "generation_config.json"}
    pipe = PaiPainterPipeline.from_pretrained(adapter)
    assert type(pipe.model) is PaiPainterForImageGeneration
    for loaded in (
        pipe.model,
        load(adapter),
        AutoModel.from_pretrained(adapter),
        PeftModel.from_pretrained(load(tiny_painter), adapter),
    ):
        assert torch.equal(logits_of(loaded), expected)
    assert not torch.allclose(logits_of(load(tiny_painter)), expected, **SAME)


def test_gathered_weights_are_saved_in_place_of_the_painters(tiny_painter: Path, adapter: Path, tmp_path: Path) -> None:
    painter = load(tiny_painter)
    add_lora(painter, RANK)
    make_noticeable(painter)
    gathered = {name: weight.clone() for name, weight in painter.state_dict().items()}
    make_noticeable(painter, seed=1)
    save_lora(painter, tmp_path / "again", gathered)
    files = [folder / "adapter_model.safetensors" for folder in (adapter, tmp_path / "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("target_modules", [None, ["lm_head"], ["embed_tokens", "q_proj", "lm_head"]])
def test_the_file_holds_the_adapter_alone(tiny_painter: Path, tmp_path: Path, target_modules: list[str] | None) -> None:
    painter = load(tiny_painter)
    add_lora(painter, RANK, target_modules=target_modules)
    make_noticeable(painter)
    expected = logits_of(painter)
    save_lora(painter, tmp_path / "adapter")
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(".lora_" in name for name in weights)
    assert sum(weight.numel() for weight in weights.values()) == sum(p.numel() for p in trained_of(painter).values())
    assert torch.equal(logits_of(load_painter(tmp_path / "adapter")[0]), expected)
    merged = load(merge_lora(tmp_path / "adapter", tmp_path / "merged"))
    torch.testing.assert_close(logits_of(merged), expected, **SAME)


def test_a_loaded_adapter_is_frozen_and_without_dropout(
    tiny_painter: Path, pipe: PaiPainterPipeline, tmp_path: Path
) -> None:
    painter = load(tiny_painter)
    add_lora(painter, RANK, dropout=0.5)
    make_noticeable(painter)
    save_lora(painter, tmp_path / "adapter")
    pipe.load_lora_weights(tmp_path / "adapter")
    assert not trained_of(pipe.model)
    with torch.no_grad():
        assert torch.equal(pipe.model(ids_of(pipe.model)).logits, logits_of(painter))


def test_repositories_that_were_downloaded_before_need_no_network(
    tiny_painter: Path, adapter: Path, tmp_path: Path
) -> None:
    """The Hub client's cache, with the base at a revision that isn't its main one."""
    edit_settings(adapter, base_model_name_or_path="me/base", revision="v1")
    for name, revision, folder in (("base", "v1", tiny_painter), ("adapter", "main", adapter)):
        repository, commit = tmp_path / f"models--me--{name}", "0123456789" * 4
        shutil.copytree(folder, repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs" / revision).write_text(commit)
    offline = {"cache_dir": tmp_path, "local_files_only": True}
    pipe = PaiPainterPipeline.from_pretrained("me/base", revision="v1", **offline)
    pipe.load_lora_weights("me/adapter", **offline)
    expected = logits_of(load_painter(adapter, base=tiny_painter)[0])
    assert torch.equal(logits_of(pipe.model), expected)
    assert torch.equal(logits_of(PaiPainterPipeline.from_pretrained("me/adapter", **offline).model), expected)
    (tmp_path / "models--me--base" / "refs" / "v1").rename(tmp_path / "models--me--base" / "refs" / "main")
    with pytest.raises(OSError, match=r"was trained on me/base, which can't be found; please pass .* as `base`"):
        PaiPainterPipeline.from_pretrained("me/adapter", **offline)


def test_an_adapter_over_an_easynlp_folder(tmp_path: Path) -> None:
    painter = golden_painter()
    add_lora(painter, RANK)
    make_noticeable(painter)
    save_lora(painter, tmp_path / "adapter")
    loaded, processor = load_painter(tmp_path / "adapter", vq_config=vqgan_config())
    assert torch.equal(logits_of(loaded), logits_of(painter))
    assert processor.text_length == painter.config.text_length


def test_an_adapter_names_its_base_by_its_whole_path_and_revision(
    tiny_painter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_painter.parent)
    painter = load(tiny_painter.name)
    add_lora(painter, RANK, base_revision="v1")
    save_lora(painter, tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == (str(tiny_painter), "v1")
    found = read_adapter_folder(tmp_path / "adapter")
    assert found is not None
    assert found.base() == (str(tiny_painter), "v1")
    assert portable_base_name("alibaba-pai/some-painter") == "alibaba-pai/some-painter"


def test_the_demo_model_is_named_without_a_path(tmp_path: Path) -> None:
    painter = load(DEMO_MODEL)
    add_lora(painter, 1)
    save_lora(painter, tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "pai_painter.DEMO_MODEL"
    found = read_adapter_folder(tmp_path / "adapter")
    assert found is not None
    assert Path(found.base()[0]).samefile(DEMO_MODEL)
    assert torch.equal(logits_of(load_painter(tmp_path / "adapter")[0]), logits_of(load(DEMO_MODEL)))


def test_the_base_may_have_moved(tiny_painter: Path, adapter: Path, tmp_path: Path) -> None:
    expected = logits_of(load_painter(adapter)[0])
    edit_settings(adapter, base_model_name_or_path=str(tmp_path / "elsewhere"))
    with pytest.raises(OSError, match=r"was trained on .*elsewhere, which can't be found; please pass .* as `base`"):
        PaiPainterPipeline.from_pretrained(adapter)
    with pytest.raises(OSError, match="please pass the model that it was trained on as `base`"):
        merge_lora(adapter, tmp_path / "merged")
    pipe = PaiPainterPipeline.from_pretrained(adapter, base=tiny_painter)
    assert torch.equal(logits_of(pipe.model), expected)
    merged = load(merge_lora(adapter, tmp_path / "merged", base=tiny_painter))
    torch.testing.assert_close(logits_of(merged), expected, **SAME)
    with pytest.raises(OSError, match="is neither a local folder nor"):
        PaiPainterPipeline.from_pretrained(adapter, base=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is a whole model and has no base"):
        PaiPainterPipeline.from_pretrained(tiny_painter, base=tiny_painter)


def test_the_bases_vocabulary_must_be_its_own(tiny_painter: Path, adapter: Path, tmp_path: Path) -> None:
    fingerprint = PaiPainterProcessor.from_pretrained(tiny_painter).tokenizer.fingerprint
    assert load(merge_lora(adapter, tmp_path / "merged")).config.vocabulary_fingerprint == fingerprint
    PaiPainterPipeline.from_pretrained(tiny_painter).save_pretrained(tmp_path / "base")
    vocabulary = (tmp_path / "base" / "tokenizer.json").read_text(encoding="utf-8")
    for old, new in (('"红"', '"<red>"'), ('"绿"', '"红"'), ('"<red>"', '"绿"')):
        vocabulary = vocabulary.replace(old, new)
    (tmp_path / "base" / "tokenizer.json").write_text(vocabulary, encoding="utf-8")
    with pytest.raises(ValueError, match="isn't the model's: the `vocabulary_fingerprint`"):
        PaiPainterPipeline.from_pretrained(adapter, base=tmp_path / "base")
    with pytest.raises(ValueError, match="isn't the model's: the `vocabulary_fingerprint`"):
        merge_lora(adapter, tmp_path / "again", base=tmp_path / "base")
    assert not (tmp_path / "again").exists()


def test_the_adapters_recommended_settings_count(adapter: Path) -> None:
    file = adapter / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "top_k": 7}), encoding="utf-8")
    assert PaiPainterPipeline.from_pretrained(adapter).model.generation_config.top_k == 7
    assert "top_k 7" in describe_model(adapter)["recommended settings"]
    file.unlink()
    assert PaiPainterPipeline.from_pretrained(adapter).model.generation_config.top_k != 7


def test_info_tells_of_the_adapter_and_its_base(tiny_painter: Path, adapter: Path) -> None:
    facts = describe_model(adapter)
    trained = sum(weight.numel() for weight in load_file(adapter / "adapter_model.safetensors").values())
    assert facts["adapter"] == f"LoRA of rank {RANK}, alpha {RANK}: {trained:,} parameters"
    assert facts["base"] == str(tiny_painter)
    assert {**facts, **describe_model(tiny_painter)} == facts


# -- hostile folders


def truncated(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def without_a_weight(folder: Path) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(dict(list(weights.items())[1:]), folder / "adapter_model.safetensors", metadata={"format": "pt"})


def with_an_unknown_weight(folder: Path) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    weights["base_model.model.model.layers.7.attn.q_proj.lora_A.weight"] = torch.zeros(RANK, 16)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("break_it", "kind", "message"),
    [
        (truncated, ValueError, "The weights of .*adapter.* are damaged or truncated"),
        (without_a_weight, ValueError, r"1 of its weights don't: missing: .*lora_A"),
        (with_an_unknown_weight, ValueError, r"1 of its weights don't: unexpected: .*layers\.7\.attn\.q_proj\.lora_A"),
        (lambda folder: edit_settings(folder, r=RANK + 1), ValueError, r"mismatched: .*lora_A.* is \(3, 16\), must be"),
        (lambda folder: edit_settings(folder, r=10**12), ValueError, r"mismatched: .*lora_A"),  # takes no memory
        (lambda folder: edit_settings(folder, r="many"), ValueError, "doesn't fit .*: '<=' not supported"),
        (lambda folder: edit_settings(folder, lora_alpha=float("nan")), ValueError, "its scale is NaN or infinite"),
        (
            lambda folder: edit_settings(folder, alpha_pattern={"(q_proj|k_proj)": 9}),
            ValueError,
            r"'\(q_proj\|k_proj\)' in its settings is no name of a layer",
        ),
        (
            lambda folder: edit_settings(folder, strength=2),
            ValueError,
            "doesn't fit .*`strength` 2 in its settings is not supported",
        ),
        (
            lambda folder: edit_settings(folder, layer_replication=[[0, 2], [1, 2]]),  # peft would change the painter
            ValueError,
            "`layer_replication` .* in its settings is not supported",
        ),
        (
            lambda folder: edit_settings(folder, peft_type="IA3"),
            ValueError,
            "`peft_type` 'IA3' in its settings is not supported",
        ),
        (
            lambda folder: edit_settings(folder, modules_to_save=["lm_head"]),
            ValueError,
            "`modules_to_save` .* not supported",
        ),
        (lambda folder: edit_settings(folder, bias="all"), ValueError, "`bias` 'all' in its settings is not supported"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), ValueError, "must hold a JSON object"),
        (
            lambda folder: (folder / "adapter_config.json").write_text("{"),
            ValueError,
            "adapter_config.json .* is damaged",
        ),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), OSError, "has no weights"),
        (lambda folder: (folder / "config.json").write_text("{}"), ValueError, "a whole model .* and an adapter"),
    ],
)
def test_broken_adapters_are_refused_and_leave_the_pipeline_as_it_was(
    pipe: PaiPainterPipeline, adapter: Path, tmp_path: Path, break_it, kind: type[Exception], message: str
) -> None:
    expected, names = logits_of(pipe.model), set(pipe.model.state_dict())
    break_it(adapter)
    with pytest.raises(kind, match=message):
        pipe.load_lora_weights(adapter)
    assert torch.equal(logits_of(pipe.model), expected)
    assert set(pipe.model.state_dict()) == names
    with pytest.raises(kind, match=message):
        PaiPainterPipeline.from_pretrained(adapter)
    with pytest.raises(kind, match=message):
        merge_lora(adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_patterns_in_an_adapters_settings_choose_no_layers(adapter: Path) -> None:
    """Which layers it adapts is said by its weights: a stranger's regular expression is not run."""
    expected = logits_of(load_painter(adapter)[0])
    endless = "(" * 20 + "x+" + "+)" * 20 + "y"
    edit_settings(adapter, target_modules=endless, exclude_modules=endless, layers_pattern=endless)
    assert torch.equal(logits_of(load_painter(adapter)[0]), expected)
    edit_settings(adapter, alpha_pattern={"layers.0.attn.q_proj": 2 * RANK})
    scaled = load_painter(adapter)[0]
    assert scaled.model.layers[0].attn.q_proj.scaling == {"default": 2.0}
    assert scaled.model.layers[1].attn.q_proj.scaling == {"default": 1.0}


def test_a_failed_second_adapter_leaves_the_first(pipe: PaiPainterPipeline, adapter: Path, tmp_path: Path) -> None:
    pipe.load_lora_weights(adapter)
    expected = logits_of(pipe.model)
    broken = shutil.copytree(adapter, tmp_path / "broken")
    without_a_weight(broken)
    with pytest.raises(ValueError, match="missing"):
        pipe.load_lora_weights(broken, adapter_name="second")
    assert pipe.get_active_adapters() == ["default"]
    assert torch.equal(logits_of(pipe.model), expected)


def test_an_adapter_of_another_painter_does_not_fit(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"doesn't fit .*demo_model: .*mismatched: "):
        PaiPainterPipeline.from_pretrained(adapter, base=DEMO_MODEL)


def test_an_adapter_without_a_base_asks_for_it(tiny_painter: Path, tmp_path: Path) -> None:
    painter = PaiPainterForImageGeneration(load(tiny_painter).config)
    painter.name_or_path = ""
    add_lora(painter, RANK)
    save_lora(painter, tmp_path / "adapter")
    with pytest.raises(ValueError, match="doesn't say on which model it was trained: please pass that model as `base`"):
        PaiPainterPipeline.from_pretrained(tmp_path / "adapter")
    assert has_lora(PaiPainterPipeline.from_pretrained(tmp_path / "adapter", base=tiny_painter).model)


def test_what_is_no_adapter_is_refused(pipe: PaiPainterPipeline, tiny_painter: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"contains no adapter: it has no adapter_config\.json"):
        pipe.load_lora_weights(tiny_painter)
    with pytest.raises(ValueError, match=r"contains no adapter: it has no adapter_config\.json"):
        merge_lora(tiny_painter, tmp_path / "merged")
    with pytest.raises(OSError, match="is neither a local folder nor"):
        pipe.load_lora_weights(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no adapter to save"):
        save_lora(pipe.model, tmp_path / "adapter")


# -- the pipeline


def test_loading_and_unloading(pipe: PaiPainterPipeline, adapter: Path, tiny_painter: Path) -> None:
    names, plain = list(pipe.model.state_dict()), logits_of(pipe.model)
    pipe.load_lora_weights(adapter)
    adapted = logits_of(pipe.model)
    assert not torch.allclose(adapted, plain, **SAME)
    with pytest.raises(ValueError, match="There is an adapter 'default' already"):
        pipe.load_lora_weights(adapter)
    pipe.disable_lora()
    assert torch.equal(logits_of(pipe.model), plain)
    pipe.enable_lora()
    assert torch.equal(logits_of(pipe.model), adapted)
    pipe.unload_lora_weights()
    assert list(pipe.model.state_dict()) == names
    assert torch.equal(logits_of(pipe.model), plain)
    pipe.load_lora_weights(adapter)  # once more
    assert torch.equal(logits_of(pipe.model), adapted)


def test_two_adapters_add_up_by_weight(pipe: PaiPainterPipeline, adapter: Path, tiny_painter: Path) -> None:
    pipe.load_lora_weights(adapter, adapter_name="first")
    alone = logits_of(pipe.model)
    pipe.load_lora_weights(adapter, adapter_name="second")
    assert pipe.get_active_adapters() == ["second"]
    assert pipe.get_list_adapters() == {"model": ["first", "second"]}
    pipe.set_adapters(["first", "second"], [0.25, 0.75])
    torch.testing.assert_close(logits_of(pipe.model), alone, **SAME)
    with pytest.raises(ValueError, match="Only one adapter can be saved at a time, but 2 are active: first, second"):
        save_lora(pipe.model, tiny_painter.parent / "never")


@pytest.mark.parametrize("lora_scale", [1.0, 0.5])
def test_fusing_and_unfusing(pipe: PaiPainterPipeline, adapter: Path, lora_scale: float) -> None:
    pipe.load_lora_weights(adapter)
    adapted = logits_of(pipe.model)
    pipe.set_adapters("default", lora_scale)
    scaled = logits_of(pipe.model)
    pipe.set_adapters("default", 1.0)
    pipe.fuse_lora(lora_scale=lora_scale)
    assert pipe.num_fused_loras == 1
    torch.testing.assert_close(logits_of(pipe.model), scaled, **SAME)
    with pytest.raises(ValueError, match="none that is fused already"):
        pipe.fuse_lora()
    pipe.unfuse_lora()
    assert pipe.num_fused_loras == 0
    torch.testing.assert_close(logits_of(pipe.model), adapted, **SAME)


def test_fused_and_unloaded_is_a_whole_model(pipe: PaiPainterPipeline, adapter: Path, tmp_path: Path) -> None:
    pipe.load_lora_weights(adapter)
    adapted = logits_of(pipe.model)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert pipe.num_fused_loras == 0
    pipe.save_pretrained(tmp_path / "whole")
    torch.testing.assert_close(logits_of(load(tmp_path / "whole")), adapted, **SAME)


def test_fusing_nothing_or_by_nothing_is_refused(pipe: PaiPainterPipeline, adapter: Path) -> None:
    with pytest.raises(ValueError, match="`fuse_lora` needs an adapter"):
        pipe.fuse_lora()
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    pipe.load_lora_weights(adapter)
    with pytest.raises(ValueError, match="a `lora_scale` above 0"):
        pipe.fuse_lora(lora_scale=0)


def test_a_pipeline_with_an_adapter_saves_the_adapter(adapter: Path, tmp_path: Path) -> None:
    pipe = PaiPainterPipeline.from_pretrained(adapter)
    pipe.save_pretrained(tmp_path / "again")
    files = [folder / "adapter_model.safetensors" for folder in (adapter, tmp_path / "again")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not (tmp_path / "again" / "model.safetensors").exists()
    again = PaiPainterPipeline.from_pretrained(tmp_path / "again")
    assert torch.equal(logits_of(again.model), logits_of(pipe.model))


def test_half_precision_paints(adapter: Path) -> None:
    pipe = PaiPainterPipeline.from_pretrained(adapter, torch_dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    assert {parameter.dtype for parameter in pipe.model.parameters()} == {torch.bfloat16}
    assert pipe("红苹果", seed=0).images[0].size == (16, 16)


# -- merging


def test_merged_paints_what_the_adapter_paints(tiny_painter: Path, adapter: Path, tmp_path: Path) -> None:
    assert merge_lora(adapter, tmp_path / "merged") == tmp_path / "merged"
    painted = []
    for folder in (adapter, tmp_path / "merged", tiny_painter):
        pipe = PaiPainterPipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        painted.append((logits_of(pipe.model), pipe("红苹果", 2, seed=3, output_type="latent").image_tokens))
    torch.testing.assert_close(painted[0][0], painted[1][0], **SAME)
    assert torch.equal(painted[0][1], painted[1][1])
    assert not torch.equal(painted[0][1], painted[2][1])
    assert isinstance(PaiPainterProcessor.from_pretrained(tmp_path / "merged"), PaiPainterProcessor)
    files = {file.name for file in tiny_painter.iterdir()}
    assert {file.name for file in (tmp_path / "merged").iterdir()} == files
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_merging_leaves_the_vqgan_bit_for_bit(tiny_painter: Path, adapter: Path, tmp_path: Path) -> None:
    merged = load_file(merge_lora(adapter, tmp_path / "merged") / "model.safetensors")
    base = load_file(tiny_painter / "model.safetensors")
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert merged.keys() == base.keys()
    assert changed == {
        f"model.layers.{layer}.{name}.weight"
        for layer in (0, 1)
        for name in ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj", "mlp.fc_1", "mlp.fc_2")
    }


def test_a_half_precision_base_is_merged_in_float32_and_saved_in_its_own(tiny_painter: Path, tmp_path: Path) -> None:
    half = load(tiny_painter, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    PaiPainterProcessor.from_pretrained(tiny_painter).save_pretrained(tmp_path / "half")
    painter = load(tmp_path / "half", dtype=torch.float32)
    add_lora(painter, RANK)
    make_noticeable(painter)
    save_lora(painter, tmp_path / "adapter")
    layer = painter.model.layers[0].attn.q_proj
    expected = (layer.base_layer.weight + layer.get_delta_weight("default")).to(torch.bfloat16)
    merged = load_file(merge_lora(tmp_path / "adapter", tmp_path / "merged") / "model.safetensors")
    assert {weight.dtype for weight in merged.values()} == {torch.bfloat16}
    assert torch.equal(merged["model.layers.0.attn.q_proj.weight"], expected)


def test_merging_never_overwrites_and_is_whole_or_not_there(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for taken in ("full", "file"):
        with pytest.raises(FileExistsError, match="exists already: please name a new folder, or an empty one"):
            merge_lora(adapter, tmp_path / taken)
    (tmp_path / "empty").mkdir()

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full_disk:
        full_disk.setattr(PaiPainterProcessor, "save_pretrained", fail)
        for output in ("new", "empty"):
            with pytest.raises(OSError, match="No space left"):
                merge_lora(adapter, tmp_path / output)
    assert {file.name for file in tmp_path.iterdir()} == {"adapter", "full", "file", "empty"}
    merge_lora(adapter, tmp_path / "empty")
    assert (tmp_path / "empty" / "model.safetensors").is_file()


def test_an_adapter_that_is_not_finite_is_not_merged(adapter: Path, tmp_path: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    next(iter(weights.values()))[0, 0] = torch.nan
    save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="NaN"):
        merge_lora(adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
