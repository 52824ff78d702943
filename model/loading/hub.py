"""Files of a model repository on the Hugging Face hub, in a cache. The only module that uses huggingface_hub.

The library is imported when something is fetched, never for a local path. It respects HF_ENDPOINT, HF_TOKEN and the
other HF_* variables; telemetry is off. It downloads to a temporary name and renames the complete file, so a partial
download is never used. Large files are also verified against the sha256 under which the hub stores them.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from model.errors import WeightsError
from model.loading.released import Reference

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when the library is imported

_YES = ("1", "ON", "YES", "TRUE")  # as the library reads its own variables
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Hub:
    """The cache directory (None: the library's own), and whether the network may be used."""

    cache_dir: str | Path | None = None
    offline: bool = False

    @property
    def local_only(self) -> bool:
        """Whether the caller or HF_HUB_OFFLINE forbids the network."""
        return self.offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in _YES

    def download(self, reference: Reference, file: str) -> Path:
        """Return the file in the cache; download it if necessary, with a progress bar on a terminal.

        Raises WeightsError.
        """
        with self._explained(reference, file):
            from huggingface_hub import hf_hub_download, try_to_load_from_cache

            cache, repo, revision = self.cache_path, reference.repo, reference.revision
            kept = isinstance(try_to_load_from_cache(repo, file, cache_dir=cache, revision=revision), str)
            path = hf_hub_download(
                *(repo, file),
                revision=revision,
                cache_dir=cache,
                local_files_only=self.local_only,
                endpoint=os.environ.get("HF_ENDPOINT"),
            )
        if not kept:
            _verify(Path(path))
        return Path(path)

    def files(self, reference: Reference) -> list[str]:
        """Return the paths of the repository's files; if the hub cannot be reached, of those in the cache.

        Raises WeightsError.
        """
        with self._explained(reference):
            from httpx2 import TransportError
            from huggingface_hub import HfApi

            if self.local_only:
                return self._cached_files(reference)
            api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
            try:
                return api.list_repo_files(reference.repo, revision=reference.revision)
            except TransportError:
                return self._cached_files(reference)

    @property
    def cache_path(self) -> Path | None:
        """`cache_dir` with `~` expanded; None for the library's own cache."""
        return None if self.cache_dir is None else Path(self.cache_dir).expanduser()

    def _cached_files(self, reference: Reference) -> list[str]:
        from huggingface_hub import snapshot_download

        kept = snapshot_download(
            reference.repo, revision=reference.revision, cache_dir=self.cache_path, local_files_only=True
        )
        return sorted(path.relative_to(kept).as_posix() for path in Path(kept).rglob("*") if path.is_file())

    @contextmanager
    def _explained(self, reference: Reference, file: str = "") -> Iterator[None]:
        """Convert the library's errors to a WeightsError for the person who chose the model."""
        from httpx2 import HTTPError
        from huggingface_hub.errors import HFValidationError

        try:
            yield
        except (OSError, HTTPError, HFValidationError, RuntimeError) as error:  # hf_xet raises RuntimeError
            raise WeightsError(self._message(error, reference, file)) from error

    def _message(self, error: Exception, reference: Reference, file: str) -> str:
        from huggingface_hub import errors

        repo, revision, hub = reference.repo, reference.revision, _endpoint()
        if isinstance(error, errors.LocalEntryNotFoundError):
            return self._not_kept(error, reference, file)
        if isinstance(error, errors.GatedRepoError):
            return f"{repo} is gated: accept its terms at {hub}/{repo}, then set HF_TOKEN to a token of yours"
        if isinstance(error, errors.RevisionNotFoundError):
            return f"{repo} has no revision {revision!r}: give a branch, a tag or a commit of {hub}/{repo}"
        if isinstance(error, errors.RemoteEntryNotFoundError):
            return f"{repo} has no file {file!r} at revision {revision}{self._candidates(reference)}"
        if isinstance(error, errors.HfHubHTTPError):
            return _refused(error.response.status_code, repo)
        if isinstance(error, errors.HFValidationError):
            return f"{repo!r} cannot be the name of a repository: {error}"
        if isinstance(error, OSError) and error.errno is not None:
            return f"cannot keep {file or repo} in the cache ({error}); VIM_CACHE_DIR names another directory"
        what = f"the download of {file or repo} from {hub}"
        return f"{what} failed ({_first_line(error)}): no part of it was kept; try again"

    def _not_kept(self, error: Exception, reference: Reference, file: str) -> str:
        what = f"{file or 'a file of weights'} of {reference.repo} (revision {reference.revision})"
        absent = f"{what} is not in the cache {self.cache_path or 'of huggingface_hub'}"
        if self.local_only:
            return (
                f"{absent}, and the network is off (VIM_OFFLINE, HF_HUB_OFFLINE or offline=True): "
                "fetch it once with the network on, or give the path of a copy"
            )
        reason = _first_line(error.__cause__ or error)
        return (
            f"{_endpoint()} cannot be reached, or is not a hub ({reason}), and {absent}: "
            "check the connection and HF_ENDPOINT, or give the path of a copy"
        )

    def _candidates(self, reference: Reference) -> str:
        try:
            names = [name for name in self.files(reference) if not name.startswith(".")]
        except WeightsError:
            return ""
        return f"; it has {', '.join(names[:12])}{', …' if len(names) > 12 else ''}"


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def _refused(status: int, repo: str) -> str:
    if status in (401, 404):
        return (
            f"there is no path {repo!r} here, and {_endpoint()} has no model repository of that name that you "
            "can access: check the name; a private repository needs HF_TOKEN"
        )
    return f"{_endpoint()} answered {status} when asked for {repo}; try again later, or give the path of a copy"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def _verify(path: Path) -> None:
    """Compare with the sha256 under which large files are stored.

    On a difference, delete the file and raise WeightsError.
    """
    blob = path.resolve()
    if not _SHA256.fullmatch(blob.name):
        return
    with blob.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != blob.name:
        path.unlink()
        blob.unlink()
        raise WeightsError(f"{path.name} arrived damaged (sha256 {found}, the hub says {blob.name}): try again")
