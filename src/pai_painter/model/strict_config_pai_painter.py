# SPDX-License-Identifier: Apache-2.0
"""What the configurations share: a wrong or an unknown value is refused in one sentence."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from huggingface_hub.errors import StrictDataclassError

__all__ = ["NoUnknownKeywords", "plain_errors"]

# What transformers itself stores in a `config.json` or passes on, beside its own fields and private names.
_OF_TRANSFORMERS = {
    *("attn_implementation", "auto_map", "custom_pipelines", "experts_implementation", "model_type", "name_or_path"),
    *("num_labels", "output_attentions", "quantization_config", "torch_dtype"),
    *("bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id", "sep_token_id"),
}


def _raises_value_errors(function: Callable) -> Callable:
    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except StrictDataclassError as error:
            raise ValueError(str(error.__cause__ or error)) from error

    return checked


def plain_errors(cls: type) -> type:
    """`@strict` wraps what is wrong in exceptions that are no `ValueError`; this gives the sentence itself."""
    for name in ("__init__", "__setattr__", "validate"):
        setattr(cls, name, _raises_value_errors(getattr(cls, name)))
    return cls


class NoUnknownKeywords:
    """A configuration that takes no keyword which it doesn't have."""

    def __post_init__(self, **kwargs: Any) -> None:
        """
        Raises:
            ValueError: if there are keywords that neither the configuration nor transformers has.
        """
        unknown = sorted(name for name in kwargs if name not in _OF_TRANSFORMERS and not name.startswith("_"))
        if unknown:
            raise ValueError(
                f"{type(self).__name__} has no {', '.join(map(repr, unknown))}: please check the spelling, or, if a "
                f"newer version of pai-painter wrote this configuration, upgrade to it."
            )
        super().__post_init__(**kwargs)  # type: ignore[misc]

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """
        See transformers' [`~transformers.PreTrainedConfig.from_pretrained`].

        Raises:
            TypeError: if there are options that neither the configuration nor transformers has, unless
                `return_unused_kwargs` asks for them.
        """
        config, unused = super().from_pretrained(  # type: ignore[misc]
            pretrained_model_name_or_path, return_unused_kwargs=True, **kwargs
        )
        if return_unused_kwargs:
            return config, unused
        if unused:
            raise TypeError(f"{cls.__name__}.from_pretrained() has no option {', '.join(map(repr, sorted(unused)))}.")
        return config
