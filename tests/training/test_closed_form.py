import numpy as np
import pytest

from llama_index_embeddings_adapted.core.arrays import l2_normalize
from llama_index_embeddings_adapted.errors import OptionError
from llama_index_embeddings_adapted.training import closed_form
from tests.support.synthetic import encoded, rotated_corpus, several_answers


def test_whitening_damps_where_documents_vary_most_symmetrically_or_changes_nothing():
    random = np.random.default_rng(0)
    documents = random.standard_normal((500, 3)) * [3.0, 1.0, 1.0]
    damping = np.diag(closed_form.whitening(np.float32(documents)).weight)
    assert damping[0] < damping[1]
    assert damping[0] < damping[2]
    assert damping.mean() == pytest.approx(1.0, abs=1e-6)
    documents = np.float32(random.standard_normal((50, 4)))
    assert np.allclose(closed_form.whitening(documents, power=0.0).weight, np.eye(4), atol=1e-6)
    constant = np.ones((5, 4), dtype=np.float32)
    assert np.array_equal(closed_form.whitening(constant).weight, np.eye(4))
    adapter = closed_form.whitening(documents, bias=False)
    assert np.allclose(adapter.weight, adapter.weight.T, atol=1e-6)
    assert adapter.bias is None
    assert closed_form.whitening(documents).bias is not None


@pytest.mark.parametrize(("power", "shrinkage"), [(-0.1, 1.0), (1.5, 1.0), (0.25, 0.0)])
def test_settings_out_of_range_are_refused(power, shrinkage):
    with pytest.raises(OptionError, match=r"power in \[0, 1\] and shrinkage > 0"):
        closed_form.whitening(np.eye(3, dtype=np.float32), power=power, shrinkage=shrinkage)


@pytest.mark.parametrize("count", [60, 4], ids=["many", "fewer than dimensions"])
@pytest.mark.parametrize("strength", [0.01, 1.0, 30.0])
def test_ridge_solves_its_least_squares_problem(strength, count):
    data = several_answers().take(np.arange(count))
    queries, documents = data.queries, data.documents
    targets = closed_form.mean_documents(data.relevance, documents)
    penalty = strength * np.linalg.eigvalsh(queries.T @ queries).mean()
    # Rows of √λ · identity, with the same as targets, hold the map to the identity.
    held = penalty**0.5 * np.eye(8)
    solved = np.linalg.lstsq(np.vstack([queries, held]), np.vstack([targets, held]), rcond=None)[0]
    adapter = closed_form.ridge(data, strength)
    assert np.allclose(adapter.weight, solved.T, atol=1e-5)
    assert adapter.bias is None


def test_a_strong_ridge_is_the_identity_and_a_weak_one_undoes_a_rotation():
    data, rotation = rotated_corpus()
    strong, weak = (closed_form.ridge(data, strength).weight for strength in (1e6, 1e-3))
    assert np.allclose(strong, np.eye(12), atol=1e-4)
    undone = weak @ rotation
    undone /= np.trace(undone) / 12
    assert np.linalg.norm(undone - np.eye(12)) < 0.2 * np.linalg.norm(np.eye(12))
    data = encoded(np.eye(2), np.eye(3), [[0, 2], [1]])
    found = closed_form.mean_documents(data.relevance, data.documents)
    assert found.tolist() == [[0.5, 0, 0.5], [0, 1, 0]]


def test_answer_directions_point_to_relevant_documents_and_damp_what_varies_most():
    # Documents on both ends of each axis: their mean is zero, and all directions are alike.
    documents = np.vstack([np.eye(3), -np.eye(3)])
    data = encoded(np.eye(3)[:2], documents, [[0], [1, 2]])
    found = closed_form.answer_directions(data, closed_form.Spectrum(data.documents))
    assert np.allclose(found, [[1, 0, 0], [0, 0.5**0.5, 0.5**0.5]], atol=1e-6)
    random = np.random.default_rng(0)
    documents = random.standard_normal((400, 3)) * [1.0, 0.1, 0.1] + [0, 0, 2.0]
    documents[0] = [1, 1, 20]
    data = encoded(np.eye(3)[:1], documents, [[0]])
    [value] = closed_form.answer_directions(data, closed_form.Spectrum(data.documents))
    [target] = l2_normalize(documents[:1]) - l2_normalize(documents).mean(axis=0)
    assert np.linalg.norm(value) == pytest.approx(1.0)
    assert abs(value[1] / value[0]) > abs(target[1] / target[0])


def test_few_documents_give_the_power_of_the_whole_covariance():
    random = np.random.default_rng(1)
    few = np.float32(random.standard_normal((5, 12)))
    rows = l2_normalize(few) - l2_normalize(few).mean(axis=0)
    covariance = (rows.T @ rows).astype(np.float64) / 5
    mean = np.trace(covariance) / 12
    values, vectors = np.linalg.eigh(covariance + mean * np.eye(12))
    expected = (vectors * values**-0.5) @ vectors.T
    expected /= np.trace(expected) / 12
    assert np.allclose(closed_form.Spectrum(few).power(0.5, 1.0), expected, atol=1e-6)


@pytest.mark.parametrize("documents", [50, 5000])
def test_wide_vectors_are_decomposed_along_the_shorter_side(documents):
    wide = 4096 if documents == 50 else 8
    rows = np.float32(np.random.default_rng(0).standard_normal((documents, wide)))
    spectrum = closed_form.Spectrum(rows)
    assert len(spectrum._pairs[0]) <= min(documents, wide)
    assert spectrum.power(0.25, 1.0).shape == (wide, wide)
