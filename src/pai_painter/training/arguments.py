# SPDX-License-Identifier: Apache-2.0
"""What `train.py` and `train_codec.py` can be told, as dataclasses for `HfArgumentParser`."""

from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "CodecModelArguments",
    "CodecTrainingArguments",
    "DataArguments",
    "PainterModelArguments",
    "PainterTrainingArguments",
    "TrainingArguments",
]

# Those of transformers' schedules that need no further settings.
_SCHEDULES = ("constant", "constant_with_warmup", "cosine", "cosine_with_restarts", "linear", "polynomial")


@dataclass
class DataArguments:
    """Where pictures and captions come from."""

    train_file: str = field(metadata={"help": "TSV of captions and base64 pictures to train on (.gz too)."})
    validation_file: str | None = field(
        default=None, metadata={"help": "TSV to validate on; without it only the training loss is known."}
    )
    input_schema: str = field(
        default="idx:str:1,text:str:1,imgbase64:str:1",
        metadata={"help": "The TSV's columns in their order, EasyNLP's way."},
    )
    caption_separator: str | None = field(
        default=None,
        metadata={"help": "Splits the text column into several captions of one picture; each epoch draws one."},
    )
    max_bad_rows: int = field(default=100, metadata={"help": "More unusable rows than this stop the run."})
    cache_dir: str | None = field(
        default=None, metadata={"help": "Folder of the caches of rows and codes; the datasets library's by default."}
    )

    def __post_init__(self) -> None:
        if self.max_bad_rows < 0:
            raise ValueError(f"`max_bad_rows` must be 0 or more, got {self.max_bad_rows}.")
        if self.caption_separator == "":
            raise ValueError("`caption_separator` must not be empty; leave it out to keep each caption whole.")


@dataclass
class TrainingArguments:
    """What both trainers share. A step is one update of the weights."""

    output_dir: str = field(metadata={"help": "Folder for the trained model, checkpoints and samples."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the training rows."})
    max_train_steps: int | None = field(default=None, metadata={"help": "Overrides `num_train_epochs`."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Rows per process and step."})
    learning_rate: float = field(default=4e-5, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": f"One of {', '.join(_SCHEDULES)}."})
    warmup_steps: int = field(default=0, metadata={"help": "Steps of linear warm-up."})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW's decay of weight matrices."})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's second beta; the first is 0.9."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients longer than this are cut to it."})
    mixed_precision: str = field(default="no", metadata={"help": "no or bf16."})
    use_ema: bool = field(default=False, metadata={"help": "Save an exponential moving average of the weights."})
    ema_decay: float = field(default=0.999, metadata={"help": "Decay of that average for each step."})
    seed: int = field(default=42, metadata={"help": "Fixes the start, the order of rows and all noise."})
    logging_steps: int = field(default=100, metadata={"help": "Steps between two lines of the log."})
    save_steps: int = field(default=1000, metadata={"help": "Steps between two checkpoints."})
    save_total_limit: int = field(default=2, metadata={"help": "Checkpoints to keep."})
    sample_steps: int = field(default=1000, metadata={"help": "Steps between two validations and sample grids."})
    num_samples: int = field(default=32, metadata={"help": "Pictures on a sample grid."})
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "A checkpoint's folder, or `latest` for the newest whole one in output_dir."}
    )

    def __post_init__(self) -> None:
        _require_at_least(self, 1, "per_device_train_batch_size", "logging_steps", "save_steps", "save_total_limit")
        _require_at_least(self, 1, "sample_steps", "num_samples")
        _require_at_least(self, 0, "warmup_steps", "weight_decay", "seed")
        _require_above_0(self, "num_train_epochs", "learning_rate", "max_grad_norm")
        _require_share(self, "adam_beta2", "ema_decay")
        if self.max_train_steps is not None:
            _require_at_least(self, 1, "max_train_steps")
        if self.lr_scheduler_type not in _SCHEDULES:
            raise ValueError(
                f"`lr_scheduler_type` must be one of {', '.join(_SCHEDULES)}, got {self.lr_scheduler_type!r}."
            )
        if self.mixed_precision not in ("no", "bf16"):
            raise ValueError(f"`mixed_precision` must be no or bf16, got {self.mixed_precision!r}.")

    def total_steps(self, rows: int, processes: int) -> int:
        """Steps of the whole run for a number of training rows and processes."""
        if self.max_train_steps is not None:
            return self.max_train_steps
        return max(1, round(self.num_train_epochs * rows / (self.per_device_train_batch_size * processes)))


@dataclass
class CodecModelArguments:
    """Which codec is trained."""

    config_name: str | None = field(
        default=None, metadata={"help": "Folder or config.json of a new codec, trained from nothing."}
    )
    model_name_or_path: str | None = field(default=None, metadata={"help": "A codec to go on training."})

    def __post_init__(self) -> None:
        if (self.config_name is None) == (self.model_name_or_path is None):
            raise ValueError("Please set one of `config_name` (a new codec) and `model_name_or_path` (a trained one).")


@dataclass
class CodecTrainingArguments(TrainingArguments):
    """How the codec is trained."""

    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    l2_weight: float = field(default=2.0, metadata={"help": "Weight of the squared error beside the absolute error."})
    gradient_weight: float = field(default=1.0, metadata={"help": "Weight of the absolute error of edges."})
    commitment_weight: float = field(default=0.25, metadata={"help": "Weight of the latents' distance to codes."})
    codebook_start_step: int = field(
        default=400,
        metadata={"help": "Steps of a new codec without codes, after which k-means of latents makes the codebook."},
    )
    codebook_decay: float = field(default=0.99, metadata={"help": "Decay of the codebook's running means."})
    restart_below: float = field(
        default=0.02, metadata={"help": "A code used less than this share of the mean use is given a new place."}
    )
    max_shift: int = field(default=2, metadata={"help": "Pictures are shifted by up to this many pixels."})
    flip: bool = field(default=True, metadata={"help": "Mirror every second picture."})
    blank_code: bool = field(
        default=False,
        metadata={"help": "Teach the encoder that code 0, and no other, stands for a patch of plain white."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_at_least(self, 0, "l2_weight", "gradient_weight", "commitment_weight", "codebook_start_step")
        _require_at_least(self, 0, "max_shift")
        _require_share(self, "codebook_decay", "restart_below")


@dataclass
class PainterModelArguments:
    """Which painter is trained."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "A painter to go on training."})
    config_name: str | None = field(
        default=None, metadata={"help": "Folder or config.json of a new painter, trained from nothing."}
    )
    codec: str | None = field(default=None, metadata={"help": "With config_name: the trained codec's folder."})
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "With config_name: folder with vocab.txt; config_name's by default."}
    )
    attn_implementation: str = field(
        default="sdpa",
        metadata={"help": "sdpa, eager or flash_attention_2; on the CPU, eager is the fastest for small pictures."},
    )
    dropout: float | None = field(
        default=None, metadata={"help": "Dropout of embeddings and residual branches; the configuration's by default."}
    )

    def __post_init__(self) -> None:
        if (self.config_name is None) == (self.model_name_or_path is None):
            raise ValueError(
                "Please set one of `config_name` (a new painter) and `model_name_or_path` (a trained one)."
            )
        if self.dropout is not None:
            _require_share(self, "dropout")
        if self.config_name is not None and self.codec is None:
            raise ValueError("A new painter (`config_name`) needs a trained codec: please set `codec`.")
        if self.config_name is None and (self.codec is not None or self.tokenizer_name is not None):
            raise ValueError(
                "A trained painter (`model_name_or_path`) brings its codec and vocabulary along: please leave `codec` "
                "and `tokenizer_name` out."
            )


@dataclass
class PainterTrainingArguments(TrainingArguments):
    """How the painter is trained."""

    pkeep: float = field(
        default=1.0, metadata={"help": "Each input code is replaced by a random image code with probability 1 - pkeep."}
    )
    caption_dropout: float = field(default=0.0, metadata={"help": "Share of rows trained with the empty caption."})
    code_variants: int = field(
        default=1, metadata={"help": "Codes cached per picture: the picture itself and shifted copies of it."}
    )
    max_shift: int = field(default=0, metadata={"help": "Pixels by which the shifted copies are moved at most."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.pkeep <= 1:
            raise ValueError(f"`pkeep` must lie in (0, 1], got {self.pkeep}.")
        _require_share(self, "caption_dropout")
        if self.code_variants < 1 or (self.code_variants > 1) != (self.max_shift > 0):
            raise ValueError("Shifted copies need both `code_variants` above 1 and `max_shift` above 0.")


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
