from __future__ import annotations

import numpy as np
import pytest

from llama_index_embeddings_adapted.closed_form import whitening
from llama_index_embeddings_adapted.errors import OptionError


def test_whitening_damps_the_direction_in_which_documents_vary_most() -> None:
    random = np.random.default_rng(0)
    documents = random.standard_normal((500, 3)) * [3.0, 1.0, 1.0]
    damping = np.diag(whitening(np.float32(documents)).weight)
    assert damping[0] < damping[1]
    assert damping[0] < damping[2]
    assert damping.mean() == pytest.approx(1.0, abs=1e-6)


def test_power_zero_and_documents_without_variance_change_nothing() -> None:
    random = np.random.default_rng(0)
    documents = np.float32(random.standard_normal((50, 4)))
    assert np.allclose(whitening(documents, power=0.0).weight, np.eye(4), atol=1e-6)
    constant = np.ones((5, 4), dtype=np.float32)
    assert np.array_equal(whitening(constant).weight, np.eye(4))


def test_the_map_is_symmetric_and_the_bias_optional() -> None:
    documents = np.float32(np.random.default_rng(0).standard_normal((50, 4)))
    adapter = whitening(documents, bias=False)
    assert np.allclose(adapter.weight, adapter.weight.T, atol=1e-6)
    assert adapter.bias is None
    assert whitening(documents).bias is not None


@pytest.mark.parametrize(("power", "shrinkage"), [(-0.1, 1.0), (1.5, 1.0), (0.25, 0.0)])
def test_settings_out_of_range_are_refused(power: float, shrinkage: float) -> None:
    with pytest.raises(OptionError, match=r"power in \[0, 1\] and shrinkage > 0"):
        whitening(np.eye(3, dtype=np.float32), power=power, shrinkage=shrinkage)
