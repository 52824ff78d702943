"""Labels come from the documented sources, and no list is used for a head of another size."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from model.errors import LabelsError
from model.labels import Labels


def test_imagenet_is_in_the_models_order() -> None:
    """Some well-known indices have the right name and WordNet id."""
    labels = Labels.imagenet()

    assert (len(labels), labels.source) == (1000, "imagenet-1k")
    assert (labels[0], labels[207], labels[281], labels[999]) == ("tench", "golden retriever", "tabby", "toilet tissue")
    assert labels.wnids is not None
    assert (labels.wnids[0], labels.wnids[207], labels.wnids[999]) == ("n01440764", "n02099601", "n15075141")
    assert list(labels.wnids) == sorted(set(labels.wnids))


def test_imagenet_names_are_unique() -> None:
    """Names are unique regardless of case; the two cranes, bird and machine, have different names."""
    labels = Labels.imagenet()

    assert len({name.casefold() for name in labels.names}) == 1000
    assert (labels[134], labels[517]) == ("crane (wading bird)", "crane (lifting machine)")
    assert all(name == name.strip() for name in labels.names)


@pytest.mark.parametrize(
    ("file", "text", "names", "wnids"),
    [
        ("labels.json", '["cat", "dog"]', ("cat", "dog"), None),
        ("labels.json", "[]", (), None),
        ("labels.json", '{"1": "dog", "0": "cat"}', ("cat", "dog"), None),
        ("labels.json", '[{"wnid": "n1", "name": "cat"}, {"wnid": "n2", "name": "dog"}]', ("cat", "dog"), ("n1", "n2")),
        ("names.txt", "cat\ndog house\n", ("cat", "dog house"), None),
        ("names.txt", "\ufeffcat\r\ndög\r\n\r\n", ("cat", "dög"), None),
        ("names.txt", "[unknown]\ncat\n", ("[unknown]", "cat"), None),
        ("names", '\n ["cat"]', ("cat",), None),
        ("names", "cat\ndog", ("cat", "dog"), None),
    ],
)
def test_read(tmp_path: Path, file: str, text: str, names: tuple[str, ...], wnids: tuple[str, ...] | None) -> None:
    """Four forms of label files are read."""
    (tmp_path / file).write_bytes(text.encode())

    labels = Labels.read(tmp_path / file)

    assert (labels.names, labels.wnids, labels.source) == (names, wnids, file)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("labels.json", b"[", "labels.json: no valid JSON"),
        ("labels.json", b"3", "found a JSON int"),
        ("labels.json", b'["cat", 3]', r"names\[1\] must be a non-empty string, got 3"),
        ("labels.json", b'["cat", {"wnid": "n1", "name": "dog"}]', r"names\[1\] must be"),
        ("labels.json", b'{"1": "dog", "2": "cat"}', '2 keys must be "0" to "1", but "0" is missing'),
        ("labels.json", b'{"0": null}', r"names\[0\] must be"),
        ("labels.json", b'[{"name": "cat"}]', 'entry 0 must have exactly "wnid" and "name"'),
        ("labels.json", b'[{"wnid": 1, "name": "cat"}]', r"wnids\[0\] must be"),
        ("names.txt", b"cat\n\ndog\n", r"names\[1\] must be a non-empty string"),
        ("names.txt", b"\xff\xfe\x00", "cannot read the labels"),
    ],
)
def test_read_refuses(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    """Any other content is an error that names the file and what was found."""
    (tmp_path / file).write_bytes(content)

    with pytest.raises(LabelsError, match=message) as caught:
        Labels.read(tmp_path / file)
    assert str(tmp_path / file) in str(caught.value)


def test_read_refuses_a_missing_file(tmp_path: Path) -> None:
    """A missing file is a LabelsError, as is a name that is neither a file nor a known list."""
    with pytest.raises(LabelsError, match="cannot read the labels"):
        Labels.read(tmp_path / "labels.json")
    with pytest.raises(LabelsError, match='"imagenet-1l" is neither|\'imagenet-1l\' is neither "imagenet-1k"'):
        Labels.resolve("imagenet-1l", 1000)


def test_without_labels_a_thousand_classes_are_assumed_imagenet(caplog: pytest.LogCaptureFixture) -> None:
    """The assumption is logged with the way to change it; heads of other sizes get numbers without a message."""
    with caplog.at_level(logging.INFO, "vim.model"):
        assert Labels.resolve(None, 1000) == Labels.imagenet()
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "assuming" in caplog.text
    assert "labels.json" in caplog.text

    caplog.clear()
    labels = Labels.resolve(None, 13)
    assert (len(labels), labels[12], labels.source, caplog.text) == (13, "class_12", "none", "")


def test_no_classes_no_labels() -> None:
    """A model without a head has an empty list."""
    assert Labels.resolve(None, 0) == Labels.resolve("none", 0) == Labels((), None, "none")


def test_resolve_takes_what_it_is_given(tmp_path: Path) -> None:
    """`resolve` accepts a known name, a file, a list and Labels."""
    path = tmp_path / "labels.json"
    path.write_text('["cat", "dog"]')
    given = Labels(("cat", "dog"), source="config")

    assert Labels.resolve("imagenet-1k", 1000).source == "imagenet-1k"
    assert Labels.resolve("none", 1000)[999] == "class_999"
    assert Labels.resolve(path, 2) == Labels.resolve(str(path), 2) == Labels(("cat", "dog"), source="labels.json")
    assert Labels.resolve(["cat", "dog"], 2) == Labels(("cat", "dog"), source="given")
    assert Labels.resolve(given, 2) is given


@pytest.mark.parametrize("given", ["imagenet-1k", ["cat"], Labels(("cat",)), Labels.imagenet(), []])
def test_another_length_is_refused(given: Any) -> None:
    """A list must have one name per class; the error for another length has both numbers."""
    count = 1000 if given == "imagenet-1k" else len(given)

    with pytest.raises(LabelsError, match=rf"^{count} labels .* head of 7 classes"):
        Labels.resolve(given, 7)


@pytest.mark.parametrize("labels", [Labels.imagenet(), Labels(("cat", "dög")), Labels(())])
def test_save_and_read(tmp_path: Path, labels: Labels) -> None:
    """Saved labels are read back equal, including wnids."""
    path = tmp_path / "labels.json"
    labels.save(path)

    again = Labels.read(path)

    assert (again.names, again.wnids) == (labels.names, labels.wnids)
    assert isinstance(json.loads(path.read_text(encoding="utf-8")), list)


def test_labels_are_checked() -> None:
    """Names must be non-empty strings, and wnids must be as many as names."""
    with pytest.raises(LabelsError, match="2 names come with 1 wnids"):
        Labels(("cat", "dog"), ("n1",))
    with pytest.raises(LabelsError, match=r"names\[0\]"):
        Labels(("",))
