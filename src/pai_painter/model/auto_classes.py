# SPDX-License-Identifier: Apache-2.0
"""Makes transformers' Auto classes know the painter, the VQGAN and EasyNLP's folders."""

from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
)

from .configuration_pai_painter import EasyNLPArtistConfig, PaiPainterConfig, PaiPainterVQConfig
from .image_processing_pai_painter import PaiPainterImageProcessor
from .modeling_pai_painter import PaiPainterForImageGeneration
from .modeling_vqgan import PaiPainterVQModel
from .processing_pai_painter import PaiPainterProcessor
from .tokenization_pai_painter import PaiPainterTokenizer
from .weight_conversion import register_easynlp_names

__all__ = ["register_auto_classes"]


class EasyNLPArtist(PaiPainterForImageGeneration):
    """Stands in AutoModel for an EasyNLP folder whose VQGAN isn't known, to say so."""

    config_class = EasyNLPArtistConfig

    @classmethod
    def from_pretrained(cls, *args: Any, config: EasyNLPArtistConfig, **kwargs: Any) -> Any:
        """Raises `ValueError`, with what to pass."""
        return PaiPainterConfig.from_dict(config.to_dict())


def register_auto_classes() -> None:
    """Called once by `import pai_painter`; calling it again changes nothing."""
    for config in (PaiPainterConfig, PaiPainterVQConfig, EasyNLPArtistConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoImageProcessor.register(config, image_processor_classes={"pil": PaiPainterImageProcessor}, exist_ok=True)
    AutoModel.register(PaiPainterVQConfig, PaiPainterVQModel, exist_ok=True)
    for painter in (PaiPainterForImageGeneration, EasyNLPArtist):
        AutoModel.register(painter.config_class, painter, exist_ok=True)
        AutoModelForCausalLM.register(painter.config_class, painter, exist_ok=True)
        AutoProcessor.register(painter.config_class, PaiPainterProcessor, exist_ok=True)
    # For a painter, AutoTokenizer finds the class by its name: were it registered for its configuration, too, then a
    # trusted repository's own code would be run in its place.
    AutoTokenizer.register(EasyNLPArtistConfig, tokenizer_class=PaiPainterTokenizer, exist_ok=True)
    register_easynlp_names()
