"""Some of a set's classes: which images are kept, what their labels are, and the error for an unknown class."""

import pytest
import torch

from flowstill.data import Data, data_facts, open_data
from flowstill.errors import DataError

ALL = open_data(Data("digits"))


def labels_of(data):
    return torch.cat([labels for _, labels in data.test_batches(batch=500)])


def test_images_of_other_classes_are_dropped():
    some = open_data(Data("digits", classes=("7", "3")))
    theirs = torch.cat([batch.labels for batch in ALL.train_batches("all", batch=ALL.train_size, steps=1)])
    assert some.classes == ("7", "3")
    assert some.train_size == int(((theirs == 3) | (theirs == 7)).sum())
    assert some.test_size == int(torch.isin(labels_of(ALL), torch.tensor([3, 7])).sum())


def test_labels_number_the_classes_in_the_order_given():
    some, whole = (open_data(Data("digits", classes=names)) for names in (("7", "3"), None))
    (batch,) = some.train_batches("all", batch=some.train_size, steps=1)
    known = dict(
        zip(
            *(
                (b.index.tolist(), b.labels.tolist())
                for b in whole.train_batches("all", batch=whole.train_size, steps=1)
            ).__next__(),
            strict=True,
        )
    )
    assert batch.labels.tolist() == [{7: 0, 3: 1}[known[row]] for row in batch.index.tolist()]
    assert set(labels_of(some).tolist()) == {0, 1}


def test_choosing_all_classes_equals_choosing_none():
    every = open_data(Data("digits", classes=tuple("0123456789"), labels=50, hold_out=100))
    none = open_data(Data("digits", labels=50, hold_out=100))
    assert torch.equal(every.labelled_rows(), none.labelled_rows())
    assert torch.equal(labels_of(every), labels_of(none))
    assert every.mean == none.mean


def test_held_out_and_labelled_images_belong_to_the_classes():
    some = open_data(Data("digits", classes=("1", "4", "8"), hold_out=60, labels=12))
    held = labels_of(some)
    assert len(held) == 60
    assert held.bincount().min() >= 18  # as large a share of each class
    (batch,) = some.train_batches("labelled", batch=12, steps=1)
    assert batch.labels.bincount().tolist() == [4, 4, 4]
    assert some.train_size + some.test_size == open_data(Data("digits", classes=("1", "4", "8"))).train_size


def test_numbers_may_stand_for_names_and_made_up_images_have_the_classes():
    assert Data("digits", classes=(3, 7)).classes == ("3", "7")
    made_up = open_data(Data("synthetic:cifar10", classes=("ship", "truck")))
    assert made_up.classes == ("ship", "truck")
    assert set(labels_of(made_up).tolist()) == {0, 1}
    assert data_facts(Data("cifar10", classes=("ship", "truck"))).classes == 2


def test_an_unknown_class_suggests_the_nearest():
    with pytest.raises(DataError, match=r"Unknown class '70' of 'digits' in 'classes'\. Did you mean"):
        open_data(Data("digits", classes=("70", "1")))
    with pytest.raises(DataError, match=r"Unknown class 'dogg' of 'cifar10' in 'classes'\. Did you mean 'dog'\?"):
        data_facts(Data("cifar10", classes=("cat", "dogg")))  # before any file is opened


def test_messages_refer_to_the_chosen_classes():
    with pytest.raises(DataError, match="'labels' is 1, but the chosen part of 'digits' has 2 classes and"):
        open_data(Data("digits", classes=("3", "7"), labels=1))


@pytest.mark.parametrize("classes", [("1",), ("1", "1"), ()])
def test_at_least_two_different_classes(classes):
    with pytest.raises(ValueError, match="at least two classes, each once"):
        Data("digits", classes=classes)
