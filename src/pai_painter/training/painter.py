# SPDX-License-Identifier: Apache-2.0
"""Trains the painter: captions and cached codes → a folder that `AutoModel` and the pipeline load."""

from pathlib import Path
from typing import cast

import datasets
import torch
from accelerate import Accelerator
from PIL import Image
from torch.utils.data import Dataset
from transformers import BertTokenizer

from ..configuration_pai_painter import PaiPainterConfig
from ..data.codes import architecture_of, hash_of_model, load_codes
from ..grids import draw_grid
from ..image_processing_pai_painter import PaiPainterImageProcessor
from ..modeling_pai_painter import PaiPainterForImageGeneration
from ..modeling_vqgan import PaiPainterVQModel
from ..painter_folder import find_file
from ..processing_pai_painter import PaiPainterProcessor
from .arguments import DataArguments, PainterModelArguments, PainterTrainingArguments
from .command_line import run_from_command_line
from .order import seed_of
from .rows import load_both
from .run import TrainingRun

__all__ = ["CaptionedCodes", "main", "train_painter", "validation_loss"]


def train_painter(model: PainterModelArguments, data: DataArguments, training: PainterTrainingArguments) -> Path:
    """
    Trains a painter on captions and the codes of their pictures; the codec stays as it is.

    Returns:
        `training.output_dir`, with model, processor and generation configuration.

    Raises:
        ValueError: if arguments, data or a checkpoint don't fit.
    """
    run = TrainingRun(training)
    accelerator = run.accelerator
    painter, processor = _build_painter(model)
    painter.vqgan.requires_grad_(False)
    painter.vqgan.to(accelerator.device)
    train_codes, valid_codes = _load_codes(painter, processor, data, training, accelerator)
    settings = {
        "config": architecture_of(painter.config),
        "codec": hash_of_model(painter.vqgan),
        "data": train_codes._fingerprint,
        "attn_implementation": model.attn_implementation,
    }
    trained = [parameter for parameter in painter.parameters() if parameter.requires_grad]
    run.prepare(PainterObjective(painter, training), painter, trained, len(train_codes), settings, [])

    dataset = CaptionedCodes(train_codes, processor, training.seed, training.caption_dropout)
    for step, (input_ids, labels) in run.batches(dataset, collate_codes):
        loss = run.objective(input_ids.to(accelerator.device), labels.to(accelerator.device))
        run.update(loss)
        run.finish_step(step, loss, lambda painter, done: _report(painter, valid_codes, processor, training, done))
    return run.save_model(processor)


class PainterObjective(torch.nn.Module):
    """Mean cross-entropy of the codes, with `pkeep`; a module so that DDP sees the forward."""

    def __init__(self, painter: PaiPainterForImageGeneration, training: PainterTrainingArguments):
        super().__init__()
        self.painter, self.pkeep = painter, training.pkeep

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, text_length + num_image_codes)`)
            labels (`torch.LongTensor` of the same shape): -100 on the caption.
        """
        config = self.painter.config
        if self.pkeep < 1:
            # Published: from all ids, caption tokens included, and never used. Only codes make sense here.
            noise = torch.randint_like(input_ids, config.image_vocab_size)
            is_code = torch.arange(input_ids.shape[1], device=input_ids.device) >= config.text_length
            replaced = is_code & (torch.rand(input_ids.shape, device=input_ids.device) >= self.pkeep)
            input_ids = torch.where(replaced, noise, input_ids)
        # The caption's logits predict nothing that is trained, but for the last, which predicts the first code.
        keep = config.num_image_codes + 1
        return self.painter(input_ids, labels=labels, logits_to_keep=keep, use_cache=False).loss


class CaptionedCodes(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """
    Rows as `input_ids` and `labels`, both (text_length + num_image_codes,).

    Items are asked for by (epoch, row): which caption, which variant of the codes and whether the caption is dropped
    is a function of the seed, the epoch and the row. Asked for by row alone, the first caption and variant are taken.
    """

    def __init__(
        self, codes: datasets.Dataset, processor: PaiPainterProcessor, seed: int = 0, caption_dropout: float = 0.0
    ):
        self.codes, self.processor, self.seed, self.caption_dropout = codes, processor, seed, caption_dropout

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        if isinstance(item, int):
            row = self.codes[item]
            caption, codes = row["captions"][0], row["image_codes"][0]
        else:
            epoch, number = item
            row = self.codes[number]
            draw = torch.rand(3, generator=torch.Generator().manual_seed(seed_of(self.seed, 6, epoch, number)))
            caption = row["captions"][int(draw[0] * len(row["captions"]))]
            codes = row["image_codes"][int(draw[1] * len(row["image_codes"]))]
            if draw[2] < self.caption_dropout:
                caption = ""
        caption_ids = self.processor(text=caption, return_tensors="pt")["input_ids"][0]
        image_codes = torch.tensor(codes, dtype=torch.long)
        return torch.cat([caption_ids, image_codes]), torch.cat([torch.full_like(caption_ids, -100), image_codes])


def collate_codes(items: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Items of [`CaptionedCodes`] → `input_ids` and `labels`, (batch, text_length + num_image_codes)."""
    input_ids, labels = zip(*items, strict=True)
    return torch.stack(input_ids), torch.stack(labels)


@torch.no_grad()
def validation_loss(
    painter: PaiPainterForImageGeneration,
    codes: datasets.Dataset,
    processor: PaiPainterProcessor,
    batch_size: int = 32,
) -> float:
    """Mean cross-entropy of a code in nats, over all rows, each with its first caption."""
    painter.eval()
    rows, total = CaptionedCodes(codes, processor), 0.0
    for start in range(0, len(rows), batch_size):
        items = [rows[row] for row in range(start, min(start + batch_size, len(rows)))]
        input_ids, labels = (each.to(painter.device) for each in collate_codes(items))
        total += painter(input_ids, labels=labels, use_cache=False).loss.item() * len(items)
    return total / len(rows)


def _build_painter(model: PainterModelArguments) -> tuple[PaiPainterForImageGeneration, PaiPainterProcessor]:
    dropout = {} if model.dropout is None else {"embd_pdrop": model.dropout, "resid_pdrop": model.dropout}
    if model.model_name_or_path is not None:
        painter = PaiPainterForImageGeneration.from_pretrained(
            model.model_name_or_path,
            config=PaiPainterConfig.from_pretrained(model.model_name_or_path, **dropout),
            dtype=torch.float32,
            attn_implementation=model.attn_implementation,
        )
        return painter, PaiPainterProcessor.from_pretrained(model.model_name_or_path)
    codec = PaiPainterVQModel.from_pretrained(model.codec, dtype=torch.float32)
    config = _config_for(codec, str(model.config_name), str(model.codec))
    config.update(dropout)
    painter = PaiPainterForImageGeneration._from_config(config, attn_implementation=model.attn_implementation)
    painter.vqgan.load_state_dict(codec.state_dict())
    tokenizer = model.tokenizer_name or model.config_name
    processor = PaiPainterProcessor(
        PaiPainterImageProcessor(size=codec.config.resolution),
        _load_tokenizer(str(tokenizer), config),
        text_length=config.text_length,
        image_vocab_size=config.image_vocab_size,
    )
    return painter, processor


def _config_for(codec: PaiPainterVQModel, name: str, codec_name: str) -> PaiPainterConfig:
    """The configuration of a new painter. It may leave its codec out, but must not name another."""
    config_dict, _ = PaiPainterConfig.get_config_dict(name)
    if config_dict.get("model_type") != PaiPainterConfig.model_type:
        raise ValueError(
            f"{name} is no painter's configuration: its model_type is {config_dict.get('model_type')!r}, but must be "
            f"{PaiPainterConfig.model_type!r}."
        )
    found = architecture_of(codec.config)
    if config_dict.get("image_vocab_size", PaiPainterConfig.image_vocab_size) != found["num_embeddings"]:
        raise ValueError(
            f"{name} wants {config_dict.get('image_vocab_size', PaiPainterConfig.image_vocab_size)} image codes "
            f"(`image_vocab_size`), but the codec {codec_name} has {found['num_embeddings']}; they must be equal."
        )
    config = PaiPainterConfig.from_dict({"vq_config": found, **config_dict})
    wanted = architecture_of(config.vq_config)
    differences = [f"`{key}` {wanted[key]} instead of {found[key]}" for key in found if wanted[key] != found[key]]
    if differences:
        raise ValueError(
            f"The `vq_config` of {name} isn't that of the codec {codec_name}: it has {', '.join(differences)}; please "
            f"leave `vq_config` out to take the codec's."
        )
    return config


def _load_tokenizer(name: str, config: PaiPainterConfig) -> BertTokenizer:
    if not any(find_file(name, file) for file in ("tokenizer.json", "vocab.txt")):
        raise ValueError(f"{name} has no vocabulary (vocab.txt or tokenizer.json): please set `tokenizer_name`.")
    tokenizer = BertTokenizer.from_pretrained(name)
    if len(tokenizer) != config.text_vocab_size:
        raise ValueError(
            f"The vocabulary of {name} has {len(tokenizer)} tokens, but the configuration has "
            f"`text_vocab_size` {config.text_vocab_size}; they must be equal."
        )
    return tokenizer


def _load_codes(
    painter: PaiPainterForImageGeneration,
    processor: PaiPainterProcessor,
    data: DataArguments,
    training: PainterTrainingArguments,
    accelerator: Accelerator,
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    train_rows, valid_rows = load_both(data, training.output_dir, accelerator)
    codec, images, cache = painter.vqgan, processor.image_processor, data.cache_dir
    with accelerator.local_main_process_first():
        train = load_codes(train_rows, codec, images, training.code_variants, training.max_shift, cache)
        valid = None if valid_rows is None else load_codes(valid_rows, codec, images, cache_dir=cache)
    return train, valid


@torch.no_grad()
def _report(
    painter: PaiPainterForImageGeneration,
    codes: datasets.Dataset | None,
    processor: PaiPainterProcessor,
    training: PainterTrainingArguments,
    step: int,
) -> dict[str, float]:
    """Validation loss, and a grid of originals (through the codec) over painted pictures as samples/step-N.png."""
    if codes is None:
        return {}
    painter.eval()
    count = min(training.num_samples, len(codes))
    captions = [codes[row]["captions"][0] for row in range(count)]
    originals = torch.tensor([codes[row]["image_codes"][0] for row in range(count)], device=painter.device)
    input_ids = processor(text=captions, return_tensors="pt")["input_ids"].to(painter.device)
    painted = painter.generate_images(input_ids, seed=training.seed, best_of=4, temperature=0.7, decode=False)
    pairs = torch.stack([originals, painted["image_codes"]], dim=1).flatten(0, 1)  # original, painted, original, …
    pixel_values = painter.vqgan.decode(cast(torch.LongTensor, pairs))
    images = cast(list[Image.Image], processor.image_processor.postprocess(pixel_values.cpu(), output_type="pil"))
    labels = [text for caption in captions for text in ("原图", caption)]
    folder = Path(training.output_dir) / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    draw_grid(images, captions=labels, columns=8).save(folder / f"step-{step:06d}.png")
    return {"validation_loss": validation_loss(painter, codes, processor)}


def main(argv: list[str] | None = None) -> None:
    """The command line of `train.py`; errors are one sentence on stderr and status 2."""
    run_from_command_line((PainterModelArguments, DataArguments, PainterTrainingArguments), train_painter, argv)
