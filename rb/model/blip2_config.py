"""The three parts of a BLIP-2's config, with their types: transformers declares each as a config, a dict or none, and makes it a config when it is built."""

from __future__ import annotations

from transformers import Blip2Config, Blip2QFormerConfig, Blip2VisionConfig, PreTrainedConfig


def vision_config_of(config: Blip2Config) -> Blip2VisionConfig:
    """The ViT's config."""
    assert isinstance(config.vision_config, Blip2VisionConfig)
    return config.vision_config


def qformer_config_of(config: Blip2Config) -> Blip2QFormerConfig:
    """The Q-Former's config."""
    assert isinstance(config.qformer_config, Blip2QFormerConfig)
    return config.qformer_config


def llm_config_of(config: Blip2Config) -> PreTrainedConfig:
    """The LLM's config, of whatever family."""
    assert isinstance(config.text_config, PreTrainedConfig)
    return config.text_config
