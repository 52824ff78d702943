"""Where models are: one, a list, and a folder of models with versions, as it is on disks of all kinds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.errors import UnknownModel
from service.registry.sources import ModelSource, Sources, settings_for
from service.settings import Settings

WEIGHTS = "model.safetensors"


def repository(folder: Path, *files: str) -> Sources:
    """The sources of a folder with these files."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(file)
    return Sources.of(Settings(model_repository=folder))


def test_one_model_has_the_served_name() -> None:
    """VIM_MODEL alone is version 1 of a model with the served name."""
    sources = Sources.of(Settings(model="/weights/mine.pth"))

    assert ("mine", ("mine",), ("1",)) == (sources.default, sources.names(), sources.versions("mine"))
    assert ModelSource("mine", "1", "/weights/mine.pth") == sources.find("mine")
    assert "other" == Sources.of(Settings(model_name="other")).default


def test_the_first_of_a_list_is_the_default() -> None:
    """VIM_MODELS keeps its order."""
    sources = Sources.of(Settings(models="tiny=vim-tiny,a=/models/a"))

    assert ("tiny", ("tiny", "a")) == (sources.default, sources.names())
    assert ModelSource("a", "1", "/models/a") == sources.find("a", "1")
    assert () == sources.versions("b")


def test_numbered_folders_are_versions(tmp_path: Path) -> None:
    """The highest number is the default; a folder without numbered folders is version 1."""
    sources = repository(tmp_path, *(f"mine/{number}/{WEIGHTS}" for number in (1, 2, 10)), f"flat/{WEIGHTS}")

    assert ("flat", ("flat", "mine")) == (sources.default, sources.names())
    assert (("1", "2", "10"), ("1",)) == (sources.versions("mine"), sources.versions("flat"))
    assert ModelSource("mine", "10", str(tmp_path / "mine" / "10")) == sources.find("mine")
    assert ModelSource("mine", "2", str(tmp_path / "mine" / "2")) == sources.find("mine", "2")
    assert ModelSource("flat", "1", str(tmp_path / "flat")) == sources.find("flat", "1")


def test_a_repository_is_read_every_time(tmp_path: Path) -> None:
    """New models and versions are found without a new object."""
    sources = repository(tmp_path, f"b/1/{WEIGHTS}")
    repository(tmp_path, f"a/{WEIGHTS}", f"b/2/{WEIGHTS}")

    assert (("a", "b"), "a", "2") == (sources.names(), sources.default, sources.find("b").version)


def test_what_is_no_version_is_ignored(tmp_path: Path) -> None:
    """Leading zeros, fractions, signs, other digits, files, hidden and empty folders are no versions."""
    no_versions = ("01", "0", "1.5", "-1", "+3", "٣", "latest", ".5")
    sources = repository(tmp_path, f"m/2/{WEIGHTS}", "m/7", *(f"m/{name}/{WEIGHTS}" for name in no_versions))
    (tmp_path / "m" / "9").mkdir()

    assert ("2",) == sources.versions("m")


def test_a_model_without_files_is_not_listed(tmp_path: Path) -> None:
    """Empty folders, empty versions (also with files beside them), and folders with hidden files only."""
    sources = repository(tmp_path, f"good/{WEIGHTS}", "copied/README.md", "hidden/.part", f"deep/sub/{WEIGHTS}")
    for name in ("empty", "copied/1"):
        (tmp_path / name).mkdir()

    assert ("good",) == sources.names()
    for name in ("empty", "copied", "hidden", "deep"):
        with pytest.raises(UnknownModel, match=f"model '{name}' does not exist; this server has good"):
            sources.find(name)


def test_names_that_are_not_allowed_are_ignored_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each is logged once; files and hidden folders beside the models are ignored without a warning."""
    bad = ("a~1", "a b", "_x", "a-tensor")
    sources = repository(tmp_path, f"a/{WEIGHTS}", "README.md", f".git/{WEIGHTS}", *(f"{n}/{WEIGHTS}" for n in bad))

    assert [("a",), ("a",)] == [sources.names(), sources.names()]
    assert sorted(bad) == sorted(record.message.split("'")[1] for record in caplog.records)


def test_a_name_leads_nowhere_else(tmp_path: Path) -> None:
    """A name from a request is not a path."""
    sources = repository(tmp_path / "models", f"a/{WEIGHTS}", f"../outside/{WEIGHTS}")

    for name in ("../outside", "..", ".", "", "a/1", str(tmp_path / "outside")):
        assert () == sources.versions(name)
        with pytest.raises(UnknownModel, match="does not exist; this server has a$"):
            sources.find(name)


def test_an_unknown_version_names_those_that_exist(tmp_path: Path) -> None:
    """At most ten, the highest first."""
    few = repository(tmp_path / "few", f"m/1/{WEIGHTS}", f"m/2/{WEIGHTS}")
    many = repository(tmp_path / "many", *(f"m/{number}/{WEIGHTS}" for number in range(1, 13)))

    with pytest.raises(UnknownModel, match="^model 'm' does not have version '3'; it has 2, 1$"):
        few.find("m", "3")
    with pytest.raises(UnknownModel, match="it has 12, 11, 10, 9, 8, 7, 6, 5, 4, 3 and 2 more$"):
        many.find("m", "01")


def test_a_server_has_at_most_64_models(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first 64 by name are served; a warning names the first of the others."""
    sources = repository(tmp_path, *(f"m{number}/{WEIGHTS}" for number in range(100, 166)))

    assert (64, "m163") == (len(sources.names()), sources.names()[-1])
    assert ["VIM_MODEL_REPOSITORY has more than 64 models; m164 and later are ignored"] == caplog.messages
    with pytest.raises(UnknownModel):
        sources.find("m164")


def test_a_missing_repository_has_no_models(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log says why, once; no name is found."""
    sources = Sources.of(Settings(model_repository=tmp_path / "no"))

    assert [(), ()] == [sources.names(), sources.names()]
    assert [f"VIM_MODEL_REPOSITORY: {tmp_path / 'no'} cannot be read: No such file or directory"] == caplog.messages
    with pytest.raises(UnknownModel, match="this server has none"):
        sources.find("a")
    with pytest.raises(UnknownModel, match="no models at present"):
        _ = sources.default


def test_a_folder_that_cannot_be_read_hides_only_its_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of another user, and a link that leads nowhere or to itself."""
    sources = repository(tmp_path, f"a/{WEIGHTS}", f"b/{WEIGHTS}")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    listed = Path.iterdir

    def refused(path: Path) -> object:
        if path.name == "b":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", refused)

    assert ("a",) == sources.names()
    assert [f"VIM_MODEL_REPOSITORY: {tmp_path / 'b'} cannot be read: Permission denied"] == caplog.messages


def test_the_state_changes_with_the_files(tmp_path: Path) -> None:
    """Content, time, a new file and a removed one; equal while nothing changes. Subfolders do not count."""
    sources = repository(tmp_path, f"m/1/{WEIGHTS}", "m/1/config.json")
    file = tmp_path / "m" / "1" / WEIGHTS
    states = [sources.files(sources.find("m", "1"))]
    assert states == [sources.files(sources.find("m", "1"))]

    def changed() -> None:
        states.append(sources.files(sources.find("m", "1")))

    file.write_text("longer than it was before")
    changed()
    os.utime(file, ns=(1, 1))
    changed()
    (tmp_path / "m" / "1" / "labels.json").touch()
    changed()
    (tmp_path / "m" / "1" / "config.json").unlink()
    changed()

    assert 5 == len(set(states))
    (tmp_path / "m" / "1" / "sub").mkdir()
    (tmp_path / "m" / "1" / ".lock").touch()
    assert states[-1] == sources.files(sources.find("m", "1"))
    with pytest.raises(UnknownModel):
        sources.files(sources.find("m", "2"))


def test_files_behind_links_are_followed(tmp_path: Path) -> None:
    """Kubernetes replaces the link `..data` by one to a new folder; the links beside it stay the same."""
    model = tmp_path / "models" / "m"
    for number, folder in enumerate(("..1", "..2"), 1):
        (model / folder).mkdir(parents=True)
        (model / folder / WEIGHTS).write_text("x" * number)
    (model / "..data").symlink_to("..1")
    (model / WEIGHTS).symlink_to(f"..data/{WEIGHTS}")
    sources = Sources.of(Settings(model_repository=tmp_path / "models"))
    assert ("1",) == sources.versions("m")
    before = sources.files(sources.find("m", "1"))

    (model / "..new").symlink_to("..2")
    os.replace(model / "..new", model / "..data")

    after = sources.files(sources.find("m", "1"))
    assert before is not None
    assert after is not None
    assert [(WEIGHTS, 1), (WEIGHTS, 2)] == [entry[:2] for entry in (*before, *after)]


def test_models_and_versions_may_be_links(tmp_path: Path) -> None:
    """A link to a folder is a folder."""
    repository(tmp_path / "store", f"x/{WEIGHTS}")
    (tmp_path / "models" / "m").mkdir(parents=True)
    (tmp_path / "models" / "m" / "3").symlink_to(tmp_path / "store" / "x")
    (tmp_path / "models" / "n").symlink_to(tmp_path / "store" / "x")
    sources = Sources.of(Settings(model_repository=tmp_path / "models"))

    assert ("m", "n") == sources.names()
    assert (("3",), ("1",)) == (sources.versions("m"), sources.versions("n"))


def test_only_local_files_have_a_state(tmp_path: Path) -> None:
    """A listed folder or file has one, with the shards beside an index; a released or hub name has none."""
    for name in ("a.pth", "b.pth", "model.safetensors.index.json"):
        (tmp_path / name).touch()
    index = tmp_path / "model.safetensors.index.json"
    listed = f"dir={tmp_path},file={tmp_path}/a.pth,index={index},tiny=vim-tiny,hub=o/n@v1,gone={tmp_path}/gone"
    sources = Sources.of(Settings(models=listed))

    states = [sources.files(sources.find(name, "1")) for name in sources.names()]
    assert [3, 1, 3, None, None, None] == [state and len(state) for state in states]


def test_a_version_is_loaded_with_settings_of_its_own(tmp_path: Path) -> None:
    """They are those of a server of this model alone, also in another process."""
    sources = repository(tmp_path, f"mine/4/{WEIGHTS}")
    several = Settings(model_repository=tmp_path, max_batch=4)

    own = settings_for(several, sources.find("mine"))

    assert (str(tmp_path / "mine" / "4"), "mine", 4) == (own.model, own.served_name, own.max_batch)
    assert ("", None) == (own.models, own.model_repository)
    assert own == Settings.model_validate_json(own.model_dump_json())
