# SPDX-License-Identifier: Apache-2.0
"""What `train.py` and `train_vqgan.py` can be told, as dataclasses for `HfArgumentParser`."""

import os
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "DataArguments",
    "PainterModelArguments",
    "PainterTrainingArguments",
    "TrainingArguments",
    "VQGANModelArguments",
    "VQGANTrainingArguments",
]

# Those of transformers' schedules that need no further settings.
_SCHEDULES = ("constant", "constant_with_warmup", "cosine", "cosine_with_restarts", "linear", "polynomial")


@dataclass
class DataArguments:
    """Where pictures and captions come from."""

    train_file: list[str] = field(
        default_factory=list,
        metadata={
            "help": "What to train on: files or globs of one kind (TSV, also .gz, Parquet, CSV, JSONL, WebDataset "
            ".tar), or a folder of pictures with captions in metadata.csv, metadata.jsonl or a text file beside each."
        },
    )
    validation_file: list[str] = field(
        default_factory=list, metadata={"help": "The same to validate on; without it only the training loss is known."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Instead of train_file: a data set of the Hub, or a folder of one."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "With dataset_name: its configuration."})
    train_split: str = field(default="train", metadata={"help": "With dataset_name: the part to train on."})
    validation_split: str | None = field(
        default=None, metadata={"help": "With dataset_name: the part to validate on, if validation_file is not given."}
    )
    input_schema: str = field(
        default="idx:str:1,text:str:1,imgbase64:str:1",
        metadata={"help": "A TSV's columns in their order, EasyNLP's way."},
    )
    id_column: str = field(default="idx", metadata={"help": "Column of ids; rows are numbered if there is none."})
    caption_column: str = field(default="text", metadata={"help": "Column of captions."})
    image_column: str | None = field(
        default=None, metadata={"help": "Column of pictures; imgbase64 of a TSV and image of the rest by default."}
    )
    caption_separator: str | None = field(
        default=None,
        metadata={"help": "Splits the captions' column into several of one picture; each epoch draws one."},
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read the training rows as they come, for data that doesn't fit on the disk; nothing is cached."
        },
    )
    shuffle_buffer: int = field(default=1000, metadata={"help": "With streaming: rows among which the next is drawn."})
    max_bad_rows: int = field(default=100, metadata={"help": "More unusable rows than this stop the run."})
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of the caches of rows and image tokens; the datasets library's by default."},
    )

    def __post_init__(self) -> None:
        _expand_home(self, "train_file", "validation_file", "dataset_name", "cache_dir")
        if bool(self.train_file) == (self.dataset_name is not None):
            raise ValueError("Please set one of `train_file` (your files) and `dataset_name` (a data set's name).")
        if self.dataset_name is None and (self.dataset_config_name is not None or self.validation_split is not None):
            raise ValueError("`dataset_config_name` and `validation_split` go with `dataset_name`: please set it.")
        if self.validation_file and self.validation_split is not None:
            raise ValueError("Please set only one of `validation_file` and `validation_split`.")
        _require_at_least(self, 0, "max_bad_rows")
        _require_at_least(self, 1, "shuffle_buffer")
        if self.caption_separator == "":
            raise ValueError("`caption_separator` must not be empty; leave it out to keep each caption whole.")

    @property
    def validates(self) -> bool:
        """Whether there are rows to validate on."""
        return bool(self.validation_file) or self.validation_split is not None


@dataclass
class TrainingArguments:
    """What both trainers share. A step is one update of the weights."""

    output_dir: str = field(metadata={"help": "Folder for the trained model, checkpoints and samples."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace a model in output_dir that no checkpoint belongs to."}
    )
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the training rows."})
    max_train_steps: int | None = field(default=None, metadata={"help": "Overrides `num_train_epochs`."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Rows per process and forward."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Forwards whose gradients make one step."})
    learning_rate: float = field(default=4e-5, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": f"One of {', '.join(_SCHEDULES)}."})
    warmup_steps: int = field(default=0, metadata={"help": "Steps of linear warm-up."})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW's decay of weight matrices."})
    adam_beta1: float = field(default=0.9, metadata={"help": "AdamW's first beta."})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's second beta."})
    adam_epsilon: float = field(default=1e-8, metadata={"help": "AdamW's epsilon."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients longer than this are cut to it."})
    mixed_precision: str | None = field(
        default=None,
        metadata={"help": "no, bf16 or fp16 (not on the CPU); what accelerate was launched with by default."},
    )
    torch_compile: bool = field(default=False, metadata={"help": "Compile the model; the first steps take minutes."})
    use_ema: bool = field(default=False, metadata={"help": "Save an exponential moving average of the weights."})
    ema_decay: float = field(default=0.999, metadata={"help": "Decay of that average for each step."})
    seed: int = field(default=42, metadata={"help": "Fixes new weights, the order of rows and all noise."})
    dataloader_num_workers: int = field(default=0, metadata={"help": "Processes beside each that prepare its rows."})
    logging_steps: int = field(default=100, metadata={"help": "Steps between two lines of the log."})
    save_steps: int = field(default=1000, metadata={"help": "Steps between two checkpoints."})
    save_total_limit: int = field(default=2, metadata={"help": "Checkpoints to keep."})
    eval_steps: int = field(default=1000, metadata={"help": "Steps between two validations."})
    sample_steps: int = field(default=1000, metadata={"help": "Steps between two grids of samples."})
    num_samples: int = field(default=8, metadata={"help": "Validation rows on a grid of samples."})
    report_to: list[str] = field(
        default_factory=list, metadata={"help": "Trackers, as accelerate names them: tensorboard, trackio, wandb, …"}
    )
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "A checkpoint's folder, or `latest` for the newest whole one in output_dir."}
    )
    ignore_changed_settings: bool = field(
        default=False, metadata={"help": "Resume even if data or settings changed, which makes it another run."}
    )

    def __post_init__(self) -> None:
        _expand_home(self, "output_dir", "resume_from_checkpoint")
        _require_at_least(self, 1, "per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps")
        _require_at_least(self, 1, "save_steps", "save_total_limit", "eval_steps", "sample_steps", "num_samples")
        _require_at_least(self, 0, "warmup_steps", "weight_decay", "seed", "dataloader_num_workers")
        _require_above_0(self, "num_train_epochs", "learning_rate", "max_grad_norm", "adam_epsilon")
        _require_share(self, "adam_beta1", "adam_beta2", "ema_decay")
        if self.max_train_steps is not None:
            _require_at_least(self, 1, "max_train_steps")
        if self.lr_scheduler_type not in _SCHEDULES:
            raise ValueError(
                f"`lr_scheduler_type` must be one of {', '.join(_SCHEDULES)}, got {self.lr_scheduler_type!r}."
            )
        if self.lr_scheduler_type == "constant" and self.warmup_steps:
            raise ValueError("The schedule `constant` has no `warmup_steps`: please set `constant_with_warmup`.")
        if self.mixed_precision not in (None, "no", "bf16", "fp16"):
            raise ValueError(f"`mixed_precision` must be no, bf16 or fp16, got {self.mixed_precision!r}.")

    def total_steps(self, rows: int, processes: int) -> int:
        """Steps of the whole run for a number of training rows and processes."""
        if self.max_train_steps is not None:
            return self.max_train_steps
        rows_per_step = self.per_device_train_batch_size * self.gradient_accumulation_steps * processes
        return max(1, round(self.num_train_epochs * rows / rows_per_step))


@dataclass
class VQGANModelArguments:
    """Which VQGAN is trained."""

    config_name: str | None = field(
        default=None, metadata={"help": "Folder or config.json of a new VQGAN, trained from scratch."}
    )
    model_name_or_path: str | None = field(default=None, metadata={"help": "A VQGAN to continue training."})
    revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a VQGAN on the Hub."})

    def __post_init__(self) -> None:
        _expand_home(self, "config_name", "model_name_or_path")
        if (self.config_name is None) == (self.model_name_or_path is None):
            raise ValueError("Please set one of `config_name` (a new VQGAN) and `model_name_or_path` (a trained one).")


@dataclass
class VQGANTrainingArguments(TrainingArguments):
    """How the VQGAN is trained."""

    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    l2_weight: float = field(default=2.0, metadata={"help": "Weight of the squared error beside the absolute error."})
    gradient_weight: float = field(default=1.0, metadata={"help": "Weight of the absolute error of edges."})
    commitment_weight: float = field(
        default=0.25, metadata={"help": "Weight of the latents' distance to their codebook entries."}
    )
    codebook_start_step: int = field(
        default=400,
        metadata={"help": "Steps of a new VQGAN without a codebook, which k-means of latents then makes."},
    )
    codebook_decay: float = field(default=0.99, metadata={"help": "Decay of the codebook's running means."})
    restart_below: float = field(
        default=0.02, metadata={"help": "A codebook entry used less than this share of the mean use is moved."}
    )
    max_shift: int = field(default=2, metadata={"help": "Pictures are shifted by up to this many pixels."})
    num_samples: int = field(default=32, metadata={"help": "Validation rows on a grid of samples."})
    flip: bool = field(default=True, metadata={"help": "Mirror every second picture."})
    blank_code: bool = field(
        default=False,
        metadata={"help": "Teach the encoder that image token 0, and no other, stands for a patch of plain white."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_at_least(self, 0, "l2_weight", "gradient_weight", "commitment_weight", "codebook_start_step")
        _require_at_least(self, 0, "max_shift")
        _require_share(self, "codebook_decay", "restart_below")


@dataclass
class PainterModelArguments:
    """Which painter is trained."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "A painter to continue training."})
    config_name: str | None = field(
        default=None, metadata={"help": "Folder or config.json of a new painter, trained from scratch."}
    )
    vqgan: str | None = field(default=None, metadata={"help": "With config_name: the trained VQGAN's folder."})
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "With config_name: folder with the vocabulary; config_name's by default."}
    )
    attn_implementation: str = field(
        default="sdpa",
        metadata={"help": "sdpa, eager or flash_attention_2; on the CPU, eager is the fastest for small pictures."},
    )
    dropout: float | None = field(
        default=None, metadata={"help": "Dropout of embeddings and residual branches; the configuration's by default."}
    )
    gradient_checkpointing: bool = field(
        default=False,
        metadata={"help": "Compute activations twice rather than keep them: less memory, a third slower."},
    )
    revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a model on the Hub."})
    lora_rank: int | None = field(
        default=None, metadata={"help": "Train low-rank adapters of this rank instead of the weights themselves."}
    )
    lora_alpha: int | None = field(default=None, metadata={"help": "Scale of the adapters; lora_rank by default."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout in front of the adapters."})
    lora_target_modules: list[str] = field(
        default_factory=list, metadata={"help": "Layers with adapters; those of attention and MLP by default."}
    )

    def __post_init__(self) -> None:
        _expand_home(self, "config_name", "model_name_or_path", "vqgan", "tokenizer_name")
        if (self.config_name is None) == (self.model_name_or_path is None):
            raise ValueError(
                "Please set one of `config_name` (a new painter) and `model_name_or_path` (a trained one)."
            )
        if self.dropout is not None:
            _require_share(self, "dropout")
        if self.lora_rank is not None:
            _require_at_least(self, 1, "lora_rank")
            if self.config_name is not None:
                raise ValueError("Adapters (`lora_rank`) need a trained painter: please set `model_name_or_path`.")
        elif self.lora_alpha is not None or self.lora_dropout or self.lora_target_modules:
            raise ValueError("`lora_alpha`, `lora_dropout`, `lora_target_modules` go with `lora_rank`: please set it.")
        if self.lora_alpha is not None:
            _require_at_least(self, 1, "lora_alpha")
        _require_share(self, "lora_dropout")
        if self.config_name is not None and self.vqgan is None:
            raise ValueError("A new painter (`config_name`) needs a trained VQGAN: please set `vqgan`.")
        if self.config_name is None and (self.vqgan is not None or self.tokenizer_name is not None):
            raise ValueError(
                "A trained painter (`model_name_or_path`) brings its VQGAN and vocabulary along: please leave `vqgan` "
                "and `tokenizer_name` out."
            )


@dataclass
class PainterTrainingArguments(TrainingArguments):
    """How the painter is trained."""

    pkeep: float = field(
        default=1.0, metadata={"help": "Each input image token is replaced by a random one with probability 1 - pkeep."}
    )
    caption_dropout: float = field(default=0.0, metadata={"help": "Share of rows trained with the empty caption."})
    random_crop: bool = field(default=False, metadata={"help": "Cut random squares instead of the middle one."})
    random_flip: bool = field(default=False, metadata={"help": "Mirror pictures at random."})
    max_shift: int = field(default=0, metadata={"help": "Shift pictures at random by up to this many pixels."})
    num_crops: int = field(
        default=1,
        metadata={
            "help": "Encodings cached per picture: the picture itself and randomly changed copies of it. "
            "0 caches nothing and encodes a new copy in every step."
        },
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many validations in a row without a lower loss."}
    )
    load_best_model_at_end: bool = field(
        default=False, metadata={"help": "Keep the model of the best validation in output_dir/best and end with it."}
    )
    validation_prompts: list[str] = field(
        default_factory=list, metadata={"help": "Further captions to paint on the grids of samples."}
    )
    push_to_hub: bool = field(default=False, metadata={"help": "Put the trained model on the Hub at the end."})
    hub_model_id: str | None = field(
        default=None, metadata={"help": "With push_to_hub: owner/name; output_dir's name under your own by default."}
    )
    hub_private: bool = field(default=False, metadata={"help": "With push_to_hub: a new repository is private."})
    hub_tag: str | None = field(default=None, metadata={"help": "With push_to_hub: a tag for the commit."})
    hub_base_model: str | None = field(
        default=None,
        metadata={"help": "With push_to_hub and lora_rank: what model_name_or_path, a folder, is called on the Hub."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.pkeep <= 1:
            raise ValueError(f"`pkeep` must lie in (0, 1], got {self.pkeep}.")
        _require_share(self, "caption_dropout")
        _require_at_least(self, 0, "max_shift", "num_crops")
        if self.early_stopping_patience is not None:
            _require_at_least(self, 1, "early_stopping_patience")
        if self.augments and self.num_crops == 1:
            raise ValueError(
                "`random_crop`, `random_flip` and `max_shift` make changed copies of pictures: please set `num_crops` "
                "to the copies to encode of each picture (2 or more), or to 0 to encode a new one in every step."
            )
        if self.num_crops > 1 and not self.augments:
            raise ValueError("`num_crops` above 1 needs `random_crop`, `random_flip` or `max_shift`.")
        with_push = ("hub_model_id", "hub_private", "hub_tag", "hub_base_model")
        if not self.push_to_hub and any(getattr(self, name) not in (None, False) for name in with_push):
            raise ValueError(f"{', '.join(f'`{name}`' for name in with_push)} go with `push_to_hub`: please set it.")

    @property
    def augments(self) -> bool:
        """Whether pictures are changed at random."""
        return self.random_crop or self.random_flip or self.max_shift > 0

    @property
    def keeps_best(self) -> bool:
        """Whether the model of the best validation is kept."""
        return self.load_best_model_at_end or self.early_stopping_patience is not None


def _expand_home(arguments: Any, *names: str) -> None:
    """`~` in paths, which no shell has expanded in `--output_dir=~/out`, in a settings file, or in Python."""
    for name in names:
        value = getattr(arguments, name)
        if isinstance(value, list):
            setattr(arguments, name, [os.path.expanduser(path) for path in value])
        elif value is not None:
            setattr(arguments, name, os.path.expanduser(value))


def _require_at_least(arguments: Any, least: int, *names: str) -> None:
    for name in names:
        if not getattr(arguments, name) >= least:  # nan is neither
            raise ValueError(f"`{name}` must be at least {least}, got {getattr(arguments, name)}.")


def _require_above_0(arguments: Any, *names: str) -> None:
    for name in names:
        if not 0 < getattr(arguments, name) < float("inf"):
            raise ValueError(f"`{name}` must be a number above 0, got {getattr(arguments, name)}.")


def _require_share(arguments: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(arguments, name) < 1:
            raise ValueError(f"`{name}` must lie in [0, 1), got {getattr(arguments, name)}.")
