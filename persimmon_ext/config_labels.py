"""The names of the classes that a classification head tells apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from persimmon_ext.config_checks import check_num_labels

Labels = tuple[dict[int, str], dict[str, int]]


def numbered_labels(number: int) -> Labels:
    """id2label and label2id of LABEL_0, LABEL_1, … Raises ValueError unless `number` is one of labels."""
    check_num_labels(number)
    names = [f"LABEL_{index}" for index in range(number)]
    return dict(enumerate(names)), {name: index for index, name in enumerate(names)}


def read_labels(
    num_labels: int | None, id2label: Mapping[Any, str] | None, label2id: Mapping[str, int] | None
) -> Labels:
    """id2label and label2id of a config that says some of the three; two labels where it says none.

    Raises ValueError or TypeError, naming the field, where they make no sense or contradict each other.
    """
    for name, labels in (("id2label", id2label), ("label2id", label2id)):
        if labels is not None and not isinstance(labels, Mapping):
            raise TypeError(f"{name} must be a dictionary or None, got {labels!r}.")
    if id2label is None and label2id is not None and num_labels in (None, len(label2id)):
        id2label = {index: label for label, index in label2id.items()}
    if id2label is None:
        return numbered_labels(2 if num_labels is None else num_labels)
    try:
        names = {int(index): label for index, label in id2label.items()}
    except (TypeError, ValueError):
        raise ValueError(f"id2label must map integers to names, got {dict(id2label)!r}.") from None
    if num_labels is not None and num_labels != len(names):
        raise ValueError(f"num_labels is {num_labels!r}, but id2label has {len(names)} labels.")
    numbers = {label: index for index, label in names.items()} if label2id is None else dict(label2id)
    return names, numbers
