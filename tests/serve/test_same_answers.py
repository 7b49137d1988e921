"""The service gives the boxes of the Python API, on real photographs of all kinds."""

import concurrent.futures

import numpy as np
import pytest
from photographs import write_photographs
from serving import running

NUMBER, THRESHOLD = 50, 0.3


@pytest.mark.parametrize("batch_size", [1, 8])
def test_the_service_and_the_api(detector, bccd_dir, tmp_path, batch_size):
    paths = write_photographs(bccd_dir, tmp_path, NUMBER)
    expected = detector.predict(paths, threshold=THRESHOLD)
    with (
        running(detector, batch_size=batch_size, threshold=THRESHOLD) as service,
        concurrent.futures.ThreadPoolExecutor(16) as pool,
    ):
        answers = list(pool.map(lambda path: service.post(path.read_bytes()), paths))
    assert sum(map(len, expected)) > 5 * NUMBER
    for answer, result in zip(answers, expected, strict=True):
        found = answer.json
        assert answer.status == 200 and found["names"] == result.names.tolist()
        assert found["image_size"] == dict(zip(("height", "width"), result.image_size, strict=True))
        np.testing.assert_allclose(found["scores"], result.scores, atol=1e-4)
        boxes = np.reshape(found["boxes"], (-1, 4))
        np.testing.assert_allclose(boxes, result.boxes, atol=0.02)
