"""Which files a command reads, and up to which size."""

from __future__ import annotations

import os
from pathlib import Path

from service.cli.backend import Failed
from service.cli.files import File, find, read


def test_folders_are_searched_and_files_believed(folder: Path) -> None:
    """Files of a folder are sorted by path and hidden ones skipped; a file that is named may have any ending."""
    found = find([str(folder / "notes.txt"), str(folder), str(folder / "gone.jpg")])

    names = ["notes.txt", "a.jpeg", "b/y.png", "z.JPG", "gone.jpg"]
    assert [str(folder / name) for name in names] == [file.name for file in found]


def test_an_empty_folder_is_an_error_of_its_own(tmp_path: Path) -> None:
    """A folder without images is reported as an error."""
    (file,) = find([str(tmp_path)])

    assert file.error is not None
    assert "empty_folder" == file.error.code


def test_a_pipe_in_a_folder_is_passed_over(folder: Path) -> None:
    """Only regular files of a folder count: reading a pipe would wait for ever. A dangling link is an error."""
    os.mkfifo(folder / "c.png")
    (folder / "d.png").symlink_to(folder / "z.JPG")
    (folder / "e.png").symlink_to(folder / "nowhere")

    names = [Path(file.name).name for file in find([str(folder)])]
    assert ["a.jpeg", "y.png", "d.png", "e.png", "z.JPG"] == names


def test_files_are_read_up_to_the_limit(tmp_path: Path) -> None:
    """A file above the limit is refused as the server would, and a missing file is unreadable."""
    (tmp_path / "a").write_bytes(b"12345")

    assert b"12345" == read(File(str(tmp_path / "a")), 5)
    assert Failed("body_too_large", "larger than 4 bytes (VIM_MAX_BODY_BYTES)") == read(File(str(tmp_path / "a")), 4)
    assert Failed("unreadable", "No such file or directory") == read(File(str(tmp_path / "b")), 4)
