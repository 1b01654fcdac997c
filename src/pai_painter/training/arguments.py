# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF009 - `_setting` is `dataclasses.field`
"""The settings of `train.py` and `train_vqgan.py`, as dataclasses for `HfArgumentParser`."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

# Those of transformers' schedules that need no further settings.
_Schedule = Literal["constant", "constant_with_warmup", "cosine", "cosine_with_restarts", "linear", "polynomial"]
_HUB = ("hub_model_id", "hub_private", "hub_tag", "hub_base_model")
_PATHS = (
    *("train_file", "validation_file", "dataset_name", "cache_dir", "output_dir", "resume_from_checkpoint"),
    *("model_name_or_path", "config_name", "vqgan", "tokenizer_name"),
)
# What numbers must be, whichever class they are in; others are at least 0. All comparisons are false for nan.
_LEAST_1 = (
    *("per_device_train_batch_size", "gradient_accumulation_steps", "max_train_steps", "logging_steps", "save_steps"),
    *("save_total_limit", "eval_steps", "sample_steps", "num_samples", "shuffle_buffer", "lora_rank", "lora_alpha"),
    "early_stopping_patience",
)
_SHARES = (
    *("adam_beta1", "adam_beta2", "ema_decay", "codebook_decay", "restart_below", "caption_dropout", "dropout"),
    "lora_dropout",
)
_POSITIVE = ("num_train_epochs", "learning_rate", "max_grad_norm", "adam_epsilon")
_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    **dict.fromkeys(_LEAST_1, ("be at least 1", lambda number: number >= 1)),
    **dict.fromkeys(_SHARES, ("lie in [0, 1)", lambda number: 0 <= number < 1)),
    **dict.fromkeys(_POSITIVE, ("be a number above 0", lambda number: 0 < number < math.inf)),
    "pkeep": ("lie in (0, 1]", lambda number: 0 < number <= 1),
}


def _setting(default: Any, help: str) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: [*default], metadata={"help": help})
    return field(default=default, metadata={"help": help})


class _Checked:
    """Settings whose numbers are checked, and whose paths may begin with `~`, which no shell expands in a file."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int | float):
                what, allows = _RANGES.get(name, ("be at least 0", lambda number: number >= 0))
                if not allows(value):
                    raise ValueError(f"`{name}` must {what}, got {value}.")
            elif name in _PATHS and isinstance(value, str):
                setattr(self, name, os.path.expanduser(value))
            elif name in _PATHS and value is not None:
                setattr(self, name, [os.path.expanduser(path) for path in value])


@dataclass
class DataArguments(_Checked):
    """Where pictures and captions come from."""

    train_file: list[str] = _setting([], "Files or globs of one kind, or a folder of pictures with captions.")
    validation_file: list[str] = _setting([], "The same, for validation.")
    dataset_name: str | None = _setting(None, "Instead of train_file: a dataset on the Hub, or a local dataset folder.")
    dataset_config_name: str | None = _setting(None, "With dataset_name: its configuration.")
    train_split: str = _setting("train", "With dataset_name: the split to train on.")
    validation_split: str | None = _setting(None, "With dataset_name: the split to validate on.")
    input_schema: str = _setting("idx:str:1,text:str:1,imgbase64:str:1", "A TSV's columns in their order.")
    id_column: str = _setting("idx", "Column of ids; rows are numbered if there is none.")
    caption_column: str = _setting("text", "Column of captions.")
    image_column: str | None = _setting(None, "Column of pictures; by default imgbase64 in a TSV, else image.")
    caption_separator: str | None = _setting(None, "Separator of several captions in a cell; one is drawn per epoch.")
    streaming: bool = _setting(False, "Read rows as they come, for data larger than the disk; caches nothing.")
    shuffle_buffer: int = _setting(1000, "With streaming: size of the shuffle buffer, in rows.")
    max_bad_rows: int = _setting(100, "Stop if more rows than this can't be used.")
    cache_dir: str | None = _setting(None, "Cache of rows and image tokens; by default that of the `datasets` library.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.train_file) == (self.dataset_name is not None):
            raise ValueError("Please set one of `train_file` (your files) and `dataset_name` (a dataset's name).")
        if self.dataset_name is None and (self.dataset_config_name is not None or self.validation_split is not None):
            raise ValueError("`dataset_config_name` and `validation_split` need `dataset_name`: please set it.")
        if self.validation_file and self.validation_split is not None:
            raise ValueError("Please set only one of `validation_file` and `validation_split`.")
        if self.caption_separator == "":
            raise ValueError("`caption_separator` must not be empty; leave it out to keep each caption whole.")

    @property
    def validates(self) -> bool:
        """Whether there are rows to validate on."""
        return bool(self.validation_file) or self.validation_split is not None


@dataclass
class TrainingArguments(_Checked):
    """What both trainers share. A step is one update of the weights."""

    output_dir: str = field(metadata={"help": "Folder for the trained model, checkpoints and samples."})
    overwrite_output_dir: bool = _setting(False, "Replace a model in output_dir that has no checkpoints.")
    num_train_epochs: float = _setting(1.0, "Passes over the training rows.")
    max_train_steps: int | None = _setting(None, "Overrides `num_train_epochs`.")
    per_device_train_batch_size: int = _setting(16, "Batch size per process.")
    gradient_accumulation_steps: int = _setting(1, "Batches whose gradients are accumulated per step.")
    learning_rate: float = _setting(4e-5, "Peak learning rate.")
    lr_scheduler_type: _Schedule = _setting("cosine", "Its schedule.")
    warmup_steps: int = _setting(0, "Steps of linear warm-up.")
    weight_decay: float = _setting(0.01, "AdamW's weight decay, for matrices only.")
    adam_beta1: float = _setting(0.9, "AdamW's first beta.")
    adam_beta2: float = _setting(0.95, "AdamW's second beta.")
    adam_epsilon: float = _setting(1e-8, "AdamW's epsilon.")
    max_grad_norm: float = _setting(1.0, "Gradients are clipped to this norm.")
    mixed_precision: Literal["no", "bf16", "fp16"] | None = _setting(None, "By default, accelerate's launch setting.")
    torch_compile: bool = _setting(False, "Compile the model; the first steps take minutes.")
    use_ema: bool = _setting(False, "Save an exponential moving average of the weights.")
    ema_decay: float = _setting(0.999, "Decay of the moving average per step.")
    seed: int = _setting(42, "Fixes new weights, the order of rows and all noise.")
    dataloader_num_workers: int = _setting(0, "Data-loading workers per process.")
    logging_steps: int = _setting(100, "Steps between two lines of metrics.")
    save_steps: int = _setting(1000, "Steps between two checkpoints.")
    save_total_limit: int = _setting(2, "Checkpoints to keep.")
    eval_steps: int = _setting(1000, "Steps between two validations.")
    sample_steps: int = _setting(1000, "Steps between two grids of samples.")
    num_samples: int = _setting(8, "Validation rows on a grid of samples.")
    report_to: list[str] = _setting([], "Trackers, as accelerate names them: tensorboard, trackio, wandb, …")
    resume_from_checkpoint: str | None = _setting(None, "A checkpoint, or `latest` for the newest in output_dir.")
    ignore_changed_settings: bool = _setting(False, "Resume as a different run if data or settings have changed.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr_scheduler_type == "constant" and self.warmup_steps:
            raise ValueError("The schedule `constant` has no `warmup_steps`: please set `constant_with_warmup`.")

    def total_steps(self, rows: int, processes: int) -> int:
        """Steps of the whole run for a number of training rows and processes."""
        if self.max_train_steps is not None:
            return self.max_train_steps
        rows_per_step = self.per_device_train_batch_size * self.gradient_accumulation_steps * processes
        return max(1, round(self.num_train_epochs * rows / rows_per_step))


@dataclass
class VQGANTrainingArguments(TrainingArguments):
    """How the VQGAN is trained."""

    learning_rate: float = _setting(1e-3, "Peak learning rate.")
    l2_weight: float = _setting(2.0, "Weight of the squared error beside the absolute error.")
    gradient_weight: float = _setting(1.0, "Weight of the L1 loss on image gradients.")
    commitment_weight: float = _setting(0.25, "Weight of the latents' distance to their codebook entries.")
    codebook_start_step: int = _setting(400, "Steps of a new VQGAN before k-means of latents makes its codebook.")
    codebook_decay: float = _setting(0.99, "Decay of the codebook's running means.")
    restart_below: float = _setting(0.02, "Reinitialize codebook entries used less than this share of the average.")
    max_shift: int = _setting(2, "Pictures are shifted by up to this many pixels.")
    num_samples: int = _setting(32, "Validation rows on a grid of samples.")
    flip: bool = _setting(True, "Mirror half of the pictures; --no_flip turns it off.")
    blank_code: bool = _setting(False, "Make image token 0, and no other, stand for a patch of plain white.")


@dataclass
class PainterTrainingArguments(TrainingArguments):
    """How the painter is trained."""

    pkeep: float = _setting(1.0, "Input image tokens are replaced by random ones with probability 1 - pkeep.")
    caption_dropout: float = _setting(0.0, "Share of rows trained with the empty caption.")
    random_crop: bool = _setting(False, "Cut random squares instead of the middle one.")
    random_flip: bool = _setting(False, "Mirror pictures at random.")
    max_shift: int = _setting(0, "Shift pictures at random by up to this many pixels.")
    num_crops: int = _setting(1, "Augmented copies of each picture to encode and cache; 0 encodes one in every step.")
    early_stopping_patience: int | None = _setting(None, "Stop after this many validations without a lower loss.")
    load_best_model_at_end: bool = _setting(False, "Keep the best model by validation loss in best/, and end with it.")
    validation_prompts: list[str] = _setting([], "Additional captions to paint in the sample grids.")
    push_to_hub: bool = _setting(False, "Push the trained model to the Hub at the end.")
    hub_model_id: str | None = _setting(None, "Its repository, owner/name; output_dir's name by default.")
    hub_private: bool = _setting(False, "With push_to_hub: a new repository is private.")
    hub_tag: str | None = _setting(None, "With push_to_hub: a tag for the commit.")
    hub_base_model: str | None = _setting(None, "With lora_rank: the Hub's name of the base, if that is a folder.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augments and self.num_crops == 1:
            raise ValueError(
                "`random_crop`, `random_flip` and `max_shift` make changed copies of pictures: please set `num_crops` "
                "to the copies to encode of each picture (2 or more), or to 0 to encode a new one in every step."
            )
        if self.num_crops > 1 and not self.augments:
            raise ValueError("`num_crops` above 1 needs `random_crop`, `random_flip` or `max_shift`.")
        if not self.push_to_hub and any(getattr(self, name) not in (None, False) for name in _HUB):
            raise ValueError(f"{', '.join(f'`{name}`' for name in _HUB)} need `push_to_hub`: please set it.")

    @property
    def augments(self) -> bool:
        """Whether pictures are changed at random."""
        return self.random_crop or self.random_flip or self.max_shift > 0

    @property
    def keeps_best(self) -> bool:
        """Whether the model of the best validation is kept."""
        return self.load_best_model_at_end or self.early_stopping_patience is not None


@dataclass
class ModelArguments(_Checked):
    """Which model is trained."""

    model_name_or_path: str | None = _setting(None, "A trained model to continue training.")
    config_name: str | None = _setting(None, "Folder or config.json of a new model, trained from scratch.")
    revision: str = _setting("main", "Branch, tag or commit of a model on the Hub.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.config_name is None) == (self.model_name_or_path is None):
            raise ValueError("Please set one of `config_name` (a new model) and `model_name_or_path` (a trained one).")


@dataclass
class VQGANModelArguments(ModelArguments):
    """Which VQGAN is trained."""


@dataclass
class PainterModelArguments(ModelArguments):
    """Which painter is trained."""

    vqgan: str | None = _setting(None, "With config_name: the trained VQGAN's folder.")
    tokenizer_name: str | None = _setting(None, "With config_name: the vocabulary's folder, if it is another.")
    attn_implementation: str = _setting("sdpa", "sdpa, eager (for small pictures on the CPU) or flash_attention_2.")
    dropout: float | None = _setting(None, "On embeddings and residual branches; by default the configuration's.")
    gradient_checkpointing: bool = _setting(False, "Recompute activations: less memory, a third slower.")
    lora_rank: int | None = _setting(None, "Train low-rank adapters of this rank instead of the weights.")
    lora_alpha: int | None = _setting(None, "Scale of the adapters; lora_rank by default.")
    lora_dropout: float = _setting(0.0, "Dropout in front of the adapters.")
    lora_target_modules: list[str] = _setting([], "Layers with adapters; those of attention and MLP by default.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora_rank is not None and self.config_name is not None:
            raise ValueError("Adapters (`lora_rank`) need a trained painter: please set `model_name_or_path`.")
        if self.lora_rank is None and (self.lora_alpha is not None or self.lora_dropout or self.lora_target_modules):
            raise ValueError("`lora_alpha`, `lora_dropout`, `lora_target_modules` need `lora_rank`: please set it.")
        if self.config_name is not None and self.vqgan is None:
            raise ValueError("A new painter (`config_name`) needs a trained VQGAN: please set `vqgan`.")
        if self.config_name is None and (self.vqgan is not None or self.tokenizer_name is not None):
            raise ValueError("A trained painter has its own: please leave out `vqgan` and `tokenizer_name`.")
