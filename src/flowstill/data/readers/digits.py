"""The 1 797 scans of handwritten digits that come with scikit-learn."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from flowstill.data.order import stratified
from flowstill.data.reader import Reader, Source, register_reader
from flowstill.data.splits import Split, array_split

TESTED = 500  # images, of each class equally many and always the same


@register_reader("digits")
class Digits(Reader):
    """Images of 8x8 pixels, their values from 0 to 16 stretched to 0 to 255."""

    about = "scikit-learn's handwritten digits"
    local: ClassVar[bool] = False

    def read(self, source: Source) -> tuple[Split, Split | None]:
        """1 297 training and 500 test images."""
        from sklearn.datasets import load_digits

        scans = load_digits()
        labels = torch.from_numpy(scans.target.astype(np.int64))
        pixels = np.rint(scans.images * (255 / 16)).astype(np.uint8)
        tested = torch.zeros(len(labels), dtype=torch.bool)
        tested[stratified(labels, TESTED, key=0)] = True

        def split(rows: Tensor, name: str) -> Split:
            place = f"the {name} split of 'digits'"
            return array_split(pixels[rows], labels[rows], tuple(map(str, range(10))), place, ((place, len(rows)),))

        train = split((~tested).nonzero().flatten(), "training")
        return train, split(tested.nonzero().flatten(), "test") if source.with_test else None
