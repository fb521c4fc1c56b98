import json
import shutil

import numpy as np
import pytest
from scipy import stats

import llama_index_embeddings_adapted as package
from llama_index_embeddings_adapted.adapters import saving
from llama_index_embeddings_adapted.core.arrays import l2_normalize
from llama_index_embeddings_adapted.errors import DatasetError, FolderError, ShapeError
from llama_index_embeddings_adapted.operations.monitoring import compare, energy_test
from tests.conftest import QUIET, trained_engine


def cloud(count: int, *, around: int = 0, dim: int = 20, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return l2_normalize(0.3 * random.standard_normal((count, dim)) + np.eye(dim)[around])


def test_queries_of_the_same_kind_raise_no_alarm_and_a_part_of_others_does():
    sketch = saving.QuerySketch.of(cloud(600))
    reports = [compare(sketch, cloud(200, seed=seed)) for seed in range(1, 21)]
    assert not any(report.retrain for report in reports)
    assert np.mean([report.far_share for report in reports]) == pytest.approx(0.05, abs=0.03)
    assert np.mean([report.p_value for report in reports]) > 0.2
    report = compare(sketch, cloud(200, around=3, seed=1))
    assert report.retrain
    assert report.far_share > 0.9
    assert report.verdict.startswith("retrain: ")
    assert report.p_value == 0.001
    live = np.concatenate([cloud(150, seed=1), cloud(50, around=3, seed=2)])
    texts = [f"old {row}" for row in range(150)] + [f"new {row}" for row in range(50)]
    report = compare(saving.QuerySketch.of(cloud(600)), live, texts)
    assert report.retrain
    assert report.far_share == pytest.approx(0.28, abs=0.06)
    assert len(report.farthest) == 5
    assert all(text.startswith("new") for text in report.farthest)


def test_a_narrower_distribution_is_seen_and_a_small_move_told_apart():
    wide = np.concatenate([cloud(300), cloud(300, around=3, seed=1)])
    report = compare(saving.QuerySketch.of(wide), cloud(200, seed=2))
    assert report.far_share < 0.1
    assert report.retrain
    assert "another distribution" in report.verdict
    live = np.concatenate([cloud(1700, seed=1), cloud(300, around=3, seed=2)])
    wide = np.concatenate([cloud(1900, seed=3), cloud(100, around=3, seed=4)])
    report = compare(saving.QuerySketch.of(wide), live)
    assert report.moved
    assert not report.retrain
    assert report.verdict.startswith("keep, and look again")


def test_a_sketch_is_small_keeps_distances_and_one_question_of_a_document():
    wide = l2_normalize(np.random.default_rng(0).standard_normal((5000, 3072)))
    sketch = saving.QuerySketch.of(wide)
    assert sketch.points.shape == (saving.MOST_QUERIES, saving.MOST_DIRECTIONS)
    assert sketch.points.nbytes == 32_768
    restored = saving.QuerySketch.restore(sketch.arrays(), where="here")
    assert np.array_equal(restored.reference, sketch.reference)
    assert (restored.dim, restored.queries) == (3072, 5000)
    placed = sketch.project(np.stack([wide[0], wide[1], (wide[0] + 0.1 * wide[1])]))
    near, far = np.linalg.norm(placed[0] - placed[2]), np.linalg.norm(placed[0] - placed[1])
    third = l2_normalize(wide[0] + wide[1] / 10)
    assert near == pytest.approx(np.linalg.norm(wide[0] - third), rel=0.3)
    assert far == pytest.approx(2**0.5, rel=0.3)
    vectors = cloud(200)
    sketch = saving.QuerySketch.of(vectors, [row // 2 for row in range(200)])
    assert len(sketch.points) == 100
    again = np.concatenate([vectors[:50] + np.float32(1e-6), cloud(150, seed=7)])
    seen = "25 of the 200 test queries are among the 100 kept of 200 it was trained on"
    assert (sketch.overlap(again), sketch.overlap(cloud(150, seed=7))) == (seen, "")
    assert len(saving.QuerySketch.of(vectors[:40], [0] * 40).points) == 40  # too few otherwise
    one, other = np.random.default_rng(0).standard_normal((2, 40))
    points = np.concatenate([one, other])
    distance, _ = energy_test(np.abs(points[:, None] - points), 40)
    cross = np.abs(one[:, None] - other).mean()
    theirs = stats.energy_distance(one, other) ** 2
    assert distance == pytest.approx(theirs / (2 * cross), rel=1e-4)


def test_finetune_keeps_a_sketch_in_the_folder_and_inspect_reads_it(base, small, tmp_path):
    engine = trained_engine(small, base, tmp_path, epochs=1)
    assert (tmp_path / "adapter" / "queries.safetensors").stat().st_size < 40_000
    saved = b"".join(file.read_bytes() for file in (tmp_path / "adapter").iterdir())
    assert not any(text.encode() in saved for text in small.queries.values())
    words = [f"question {number} of quantum physics" for number in range(40)]
    report = package.inspect_queries(tmp_path / "adapter", words, base, examples=2, **QUIET)
    assert (report.queries, report.trained_on, len(report.farthest)) == (40, 12, 2)
    assert report.retrain
    assert json.loads(json.dumps(report.to_dict()))["verdict"] == report.verdict
    model = engine.get_finetuned_model()
    assert package.inspect_queries(model, words, examples=2, **QUIET) == report
    asked = len(base.asked)
    alike = [f"{text}{end}" for text in small.queries.values() for end in ("", " now", " today")]
    assert not package.inspect_queries(model, alike, **QUIET).retrain
    assert {role for role, _ in base.asked[asked:]} == {"query"}


def test_what_cannot_be_compared_is_refused(base, tmp_path):
    model = package.AdaptedEmbedding(base, package.LinearAdapter.identity(16))
    many = [f"query {number}" for number in range(30)]
    with pytest.raises(DatasetError, match="at least 30 distinct ones, got 1"):
        package.inspect_queries(model, ["the same"] * 100, **QUIET)
    with pytest.raises(FolderError, match="There is no sketch of the training queries"):
        package.inspect_queries(model, many, **QUIET)
    assert not base.asked
    sketch = saving.QuerySketch.of(cloud(4, dim=16))
    few = package.AdaptedEmbedding(base, package.LinearAdapter.identity(16), sketch=sketch)
    with pytest.raises(DatasetError, match="trained on 4 queries; at least 5"):
        package.inspect_queries(few, many, **QUIET)
    with pytest.raises(ShapeError, match="Live queries: expected 20 dimensions"):
        compare(saving.QuerySketch.of(cloud(10)), cloud(40, dim=8))
    few.save_pretrained(tmp_path)
    shutil.copy(tmp_path / "adapter.safetensors", tmp_path / "queries.safetensors")
    with pytest.raises(FolderError, match="the sketch of training queries is damaged"):
        package.AdaptedEmbedding.from_pretrained(tmp_path, base)
