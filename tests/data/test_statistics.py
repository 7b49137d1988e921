"""Distributions, by hand and against the batches that the network gets."""

import numpy as np
import pytest
from PIL import Image

from m2det_jax.check import statistics as stats
from m2det_jax.data import ResizeSettings, eval_batches, read_csv
from m2det_jax.datasets.coverage import network_boxes


@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
def test_boxes_are_those_of_the_batches(tmp_path, mode):
    rows = []
    for i, size in enumerate([(200, 100), (90, 160), (200, 100)]):
        Image.new("RGB", size).save(tmp_path / f"{i}.png")
        rows += [f"{i}.png,{5 + i},7,{60 + 2 * i},80,x", f"{i}.png,0,0,30,{20 + i},x"]
    (tmp_path / "a.csv").write_text("\n".join(rows))
    index = read_csv(tmp_path / "a.csv", ("x",))
    resize = ResizeSettings((64, 96), mode)
    with eval_batches(index, resize=resize, batch_size=3) as batches:
        batch = next(batches)
    expected = batch["boxes"][batch["mask"]]
    np.testing.assert_allclose(network_boxes(index, resize), expected, atol=1e-4)


def test_sizes_as_coco_names_them():
    boxes = np.array([[0, 0, 31, 33], [0, 0, 32, 32], [0, 0, 95, 97], [5, 5, 101, 101]])
    assert stats.size_groups(boxes).tolist() == [0, 1, 1, 2]
    groups, hits = np.array([0, 2, 2, 0]), np.array([True, False, True, True])
    total, hit = stats.share_by(groups, hits, 3)
    assert (total.tolist(), hit.tolist()) == ([2, 0, 2], [2, 0, 1])


def test_histograms_lose_nothing():
    values, groups = np.array([-1.0, 0.0, 0.5, 1.0, 1.5, 9.0]), np.array([0, 0, 1, 1, 0, 1])
    found = stats.histogram(values, np.array([0.0, 1.0, 2.0]))
    assert found.counts.tolist() == [3, 3]
    found = stats.histogram(values, np.array([0.0, 1.0, 2.0]), groups)
    assert found.counts.tolist() == [[2, 1], [1, 2]]
    edges = stats.count_edges(1000)
    assert edges[0] == 0 and edges[-1] > 1000 and len(edges) < 30
