from pathlib import Path

import pytest

from flowstill.data import Augment, Data, open_data

ROOT = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "cifar10" / "train.parquet").exists(), reason="needs ../shared/data/cifar10")
def test_the_real_cifar10():
    data = open_data(Data("cifar10", root=str(ROOT), labels=500, augment=Augment(crop=4)))
    assert (data.shape, data.train_size, data.labelled_size, data.test_size) == ((3, 32, 32), 50_000, 500, 10_000)
    assert data.classes[:3] == ("airplane", "automobile", "bird")
    # the set's published means and deviations; the copy here is JPEG
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.002)
    assert data.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=0.003)
    (batch,) = data.train_batches("labelled", batch=500, steps=1)
    assert batch.labels.bincount().tolist() == [50] * 10
    assert sum(len(labels) for _, labels in data.test_batches(batch=1000)) == 10_000
