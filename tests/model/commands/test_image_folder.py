"""Folders of labelled images: spelling variants are accepted, unknown classes are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.commands.image_folder import Sample, evenly_spaced, find
from model.errors import LabelsError
from model.labels import Labels

LABELS = Labels(
    ("tabby", "Golden Retriever", "black-and-tan coonhound", "crane", "Crane"), ("n1", "n2", "n3", "n4", "n5")
)


def folders(root: Path, *names: str) -> Path:
    """Create class folders with an empty image file each; nothing is opened."""
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "a.jpg").touch()
    return root


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("tabby", 0),
        ("TABBY", 0),
        ("golden_retriever", 1),
        ("Golden  Retriever ", 1),
        ("golden-retriever", 1),
        ("n2", 1),
        ("N2", 1),
        ("black_and_tan_coonhound", 2),
        ("n5", 4),
    ],
)
def test_folder_names(tmp_path: Path, name: str, label: int) -> None:
    """A folder may be named by class name or wnid, in any case and with any separator."""
    folders(tmp_path, name)

    assert find(tmp_path, LABELS) == [Sample(tmp_path / name / "a.jpg", label)]


def test_images_are_found_in_order(tmp_path: Path) -> None:
    """All usual suffixes are found, also in subfolders; hidden and other files are ignored."""
    folders(tmp_path, "tabby", "n2", ".git")
    for name in ("b.PNG", "deep/c.webp", "notes.txt", ".d.jpg", "e.JPEG"):
        (tmp_path / "tabby" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "tabby" / name).touch()
    (tmp_path / "stray.jpg").touch()

    found = [(str(sample.path.relative_to(tmp_path)), sample.label) for sample in find(tmp_path, LABELS)]

    assert found == [
        ("n2/a.jpg", 1),
        ("tabby/a.jpg", 0),
        ("tabby/b.PNG", 0),
        ("tabby/deep/c.webp", 0),
        ("tabby/e.JPEG", 0),
    ]


def test_unknown_folders_are_an_error_with_the_nearest_classes(tmp_path: Path) -> None:
    """All unknown folders are reported in one error, before anything runs."""
    folders(tmp_path, "tabby", "goldn retriever", "zzz", "crane")

    with pytest.raises(LabelsError, match=r"3 folders in .* are not among the 5 labels \(given\)") as caught:
        find(tmp_path, LABELS)

    assert "goldn retriever: did you mean 'golden retriever'?" in str(caught.value)
    assert "zzz: no similar class" in str(caught.value)
    assert "crane: 2 classes have this name; use their wnids" in str(caught.value)
    with pytest.raises(LabelsError, match="and 1 more"):
        find(folders(tmp_path / "many", *"abcdef"), LABELS)


def test_folders_without_classes_or_images(tmp_path: Path) -> None:
    """A folder without classes or images is an error that says what was expected."""
    with pytest.raises(LabelsError, match="is not a folder"):
        find(tmp_path / "absent", LABELS)
    with pytest.raises(LabelsError, match="holds no folders: put the images of each class into a folder"):
        find(tmp_path, LABELS)
    (tmp_path / "tabby").mkdir()
    with pytest.raises(LabelsError, match="has 1 class folders but no image"):
        find(tmp_path, LABELS)


def test_a_limit_keeps_every_class(tmp_path: Path) -> None:
    """A limited selection is evenly spaced and in order, and never larger than the folder."""
    samples = [Sample(Path(str(i)), i // 10) for i in range(50)]

    assert [sample.label for sample in evenly_spaced(samples, 5)] == [0, 1, 2, 3, 4]
    assert evenly_spaced(samples, 50) == evenly_spaced(samples, None) == evenly_spaced(samples, 99) == samples
    assert len(evenly_spaced(samples, 7)) == 7
