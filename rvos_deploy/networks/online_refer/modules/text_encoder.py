"""Build RoBERTa, and define the layers between it and the rest of the network."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import RobertaConfig
from transformers.models.roberta.modeling_roberta import RobertaModel

from rvos_deploy.networks.online_refer.config import PADDING_ID, OnlineReferConfig

NORM_EPS = 1e-12


def build_roberta(config: OnlineReferConfig) -> RobertaModel:
    """Build RoBERTa with random weights, in operators that every export has."""
    settings: dict[str, Any] = {
        "vocab_size": config.text_vocabulary,
        "hidden_size": config.text_width,
        "num_hidden_layers": config.text_layers,
        "num_attention_heads": config.text_heads,
        "intermediate_size": config.text_ffn,
        "max_position_embeddings": config.max_tokens + PADDING_ID + 1,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": PADDING_ID,
        "attn_implementation": "eager",  # RobertaConfig has no annotation for this key
    }
    return RobertaModel(RobertaConfig(**settings))


class FeatureResizer(nn.Module):
    """Project tokens to the network's width: linear layer and LayerNorm."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.fc = nn.Linear(inner, outer)
        self.layer_norm = nn.LayerNorm(outer, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Return [...,outer] of [...,inner]."""
        return self.layer_norm(self.fc(x))
