"""Every setting of the server, read from `VIM_` environment variables; mistakes are refused, never ignored.

`Settings(...)` uses its arguments only; `Settings.load()` reads the environment. Whether this machine or model supports
a setting is not checked here. The rules between settings are in `service.settings.rules`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from service import api_keys
from service.errors import SettingsError
from service.fetch import hosts
from service.settings import model_names, rules, words
from service.system import environment, field_words
from service.system.environment import variable

CLIENT_KEY = "VIM_CLIENT_KEY"  # used by commands with --url; not a setting of a server
ADMIN_KEY = "VIM_ADMIN_KEY"  # the same, for `teach`
_DEVICE = re.compile(r"auto|cpu|cuda|cuda:\d+(,cuda:\d+)*")

_DEFAULT_CACHE = Path("~/.cache/vim-server")


class Settings(BaseModel):
    """The settings of the server. The variable of a field is `VIM_` and its name in capitals."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, str_strip_whitespace=True, protected_namespaces=()
    )

    host: str = Field(
        default="127.0.0.1", description="Address to listen on; containers set 0.0.0.0. `::` is IPv6 only."
    )
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    http_workers: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Number of HTTP processes. They share all limits, and divide the decoding threads among them.",
    )
    tls_cert: Path | None = Field(
        None, description="Certificate (chain), PEM; with VIM_TLS_KEY the server speaks HTTPS."
    )
    tls_key: Path | None = Field(None, description="The certificate's private key, PEM, without a passphrase.")
    api_keys: tuple[str, ...] = Field(
        (), description="API keys, separated by commas; then every path except the probes requires one (401)."
    )
    api_keys_file: Path | None = Field(None, description="A file with more API keys, one per line; # begins a comment.")
    admin_keys: tuple[str, ...] = Field(
        (),
        description="Keys of administrators, separated by commas; they may load and unload models, manage custom "
        "heads, and are accepted as API keys.",
    )
    admin_keys_file: Path | None = Field(
        None, description="A file with more keys of administrators, one per line; # begins a comment."
    )
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="A port that serves /metrics without a key; /metrics is then not served on VIM_PORT.",
    )
    grpc_port: int | None = Field(
        None, ge=1, le=65535, description="A port that serves the Open Inference Protocol over gRPC; unset: none."
    )
    cors_origins: str = Field(
        "", description="Origins, separated by commas, whose pages may use the API; *: all; empty: none."
    )
    page: bool = Field(default=True, description="Whether / shows the demo page to browsers.")
    model: str = Field(
        default="demo",
        min_length=1,
        description="demo, a released name such as vim-tiny, a hub reference owner/name[@revision][:file], "
        "a directory, a .safetensors or a .pth file.",
    )
    model_name: str = Field(
        default="",
        pattern=r"^[^/~]*$",
        description="Name in answers, metrics and paths; empty: derived from VIM_MODEL.",
    )
    model_family: Literal["vim", "videomamba", "mamba-reg"] | None = Field(
        None, description="Whose code trained the weights; unset: as config.json, the name or the tensors say."
    )
    weights: Literal["model", "model_ema"] = Field(
        default="model", description="Which weights of a training checkpoint."
    )
    image_size: int | None = Field(
        default=None, ge=33, description="Side of the model's input in pixels; unset: as trained."
    )
    labels: str = Field(
        default="", description="Class names: a file, imagenet-1k or none; empty: the ones beside the weights, if any."
    )
    models: str = Field(
        "",
        description="Several models instead of VIM_MODEL, as in tiny=vim-tiny,mine=/models/mine: names, and sources as "
        "VIM_MODEL takes them. The first is the default.",
    )
    model_repository: Path | None = Field(
        None,
        description="A folder of models instead of VIM_MODEL, with one folder for each. Folders 1, 2, ... in it are "
        "versions, and the highest is served by default. The first model by name is the default.",
    )
    model_control: Literal["none", "explicit"] = Field(
        "none",
        description="explicit: models can be loaded and unloaded over HTTP, with a key of VIM_ADMIN_KEYS; none: not.",
    )
    model_poll_s: int | None = Field(
        None, ge=1, description="Seconds between checks of whether the files of a model have changed; unset: never."
    )
    heads_dir: Path | None = Field(
        None, description="A folder of custom heads; they are added and removed over HTTP with a key of VIM_ADMIN_KEYS."
    )
    cache_dir: Path | None = Field(
        default=_DEFAULT_CACHE, description="Directory for downloads and compiled code; without a home directory: none."
    )
    offline: bool = Field(default=False, description="Never use the network.")
    device: str = Field(
        default="auto",
        description="Where to compute: auto (every GPU, else the CPU), cpu, cuda, cuda:1, or cuda:0,cuda:1.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Precision of the weights; auto: float32, and on a GPU the narrowest one that agrees with it. "
        "bfloat16 is faster on CPUs with AMX.",
    )
    scan: str = Field(
        default="auto", min_length=1, description="Name of the scan implementation; auto: the best one that runs."
    )
    threads: int | None = Field(
        default=None, ge=1, description="Threads for decoding and for torch; unset: the CPU quota."
    )
    preprocess: Literal["friendly", "reference"] = Field(
        default="friendly",
        description="friendly: rotate photos upright, put transparency over white, scale 16 bits, convert colour "
        "profiles to sRGB; reference: exactly the evaluation of the paper.",
    )
    decode: Literal["exact", "fast", "pillow"] = Field(
        default="exact",
        description="How to decode JPEG files: exact: the pixels of Pillow, but faster; fast: scale large files "
        "while decoding; pillow: with Pillow alone, which saves about 115 MB of memory.",
    )
    max_batch: int | None = Field(
        default=None, ge=1, description="Most images in one forward pass; unset: chosen for the model."
    )
    max_wait_ms: int = Field(
        default=0, ge=0, description="How long an idle device waits for more images before it starts a batch."
    )
    queue_images: int = Field(
        default=256, ge=1, description="Most images waiting or running; more are refused with 429."
    )
    queue_bytes: int = Field(
        256 * 1024 * 1024, ge=1, description="Most bytes of bodies and fetched images in memory; more: 429."
    )
    bulk_percent: int = Field(
        50, ge=1, le=100, description="Percent of VIM_QUEUE_IMAGES and VIM_QUEUE_BYTES available to bulk requests."
    )
    overload_status: Literal["429", "503"] = Field("429", description="Status when the queue or the memory is full.")
    max_images: int = Field(64, ge=1, description="Most images in one request; more are refused with 413.")
    max_body_bytes: int = Field(
        default=20 * 1024 * 1024, ge=1, description="Largest request body; a larger one is refused with 413."
    )
    max_pixels: int = Field(
        default=100_000_000,
        ge=1,
        description="Largest width times height of an image; a larger one is refused with 413, before decoding.",
    )
    max_decode_bytes: int = Field(
        1 << 30,
        ge=1,
        description="Most memory for decoding all images at once; an image that alone needs more is refused with 413.",
    )
    fetch_hosts: str = Field(
        "",
        description="Hosts from which images may be fetched by URL; .example.org: with subdomains; *: every host with "
        "public addresses; empty: URLs are refused.",
    )
    fetch_max_bytes: int = Field(20 * 1024 * 1024, ge=1, description="Largest image that is fetched.")
    fetch_timeout_ms: int = Field(5_000, ge=1, description="Longest time to fetch an image, redirects included.")
    fetch_max_urls: int = Field(16, ge=1, description="Most different URLs in one request; more are refused with 413.")
    fetch_concurrency: int = Field(16, ge=1, description="Most fetches at once, in each HTTP process; others wait.")
    request_timeout_ms: int = Field(default=30_000, ge=1, description="Longest time to an answer; then 504.")
    header_timeout_ms: int = Field(
        10_000, ge=1, description="Longest time until a request's header has arrived, also on a new connection."
    )
    body_timeout_ms: int = Field(30_000, ge=1, description="Longest time until a body has arrived; then 408.")
    keep_alive_ms: int = Field(
        default=75_000,
        ge=1_000,
        description="Idle connections are closed after this time; choose more than the pools of proxies and clients.",
    )
    watchdog_ms: int | None = Field(
        None,
        ge=1,
        description="A batch that takes longer counts as hung; unset: 10 s or ten times the slowest warm-up batch.",
    )
    max_restarts: int = Field(
        5,
        ge=0,
        description="Restarts of a device process without a batch in between, after which the service gives up.",
    )
    ready_devices: Literal["all", "any"] = Field(
        "all",
        description="Whether all device processes must serve, or any one, for the server to be ready and keep running.",
    )
    drain_delay_ms: int = Field(
        default=0, ge=0, description="How long to keep listening after SIGTERM, while not ready."
    )
    drain_timeout_ms: int = Field(default=25_000, ge=0, description="How long accepted work may then take to finish.")
    log_level: Literal["debug", "info", "warning", "error", "critical"] = Field(
        default="info", description="Lowest level that is logged."
    )
    tracing: bool = Field(
        default=False, description="Whether to send traces with OpenTelemetry; OTEL_ variables set the destination."
    )

    @property
    def served_name(self) -> str:
        """The name in answers and metrics: VIM_MODEL_NAME, or else derived from the last part of VIM_MODEL."""
        name = Path(self.model).name.removesuffix("/").replace("~", "-")
        return self.model_name or re.sub(r"(@.*|:.*|\.(safetensors|pth|pt|bin))$", "", name) or "model"

    @property
    def devices(self) -> list[str]:
        """The devices, one for each device process."""
        return self.device.split(",")

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, origins: Mapping[str, str] | None = None) -> Self:
        """Read the environment. Raises SettingsError with one line for each mistake.

        An empty variable counts as unset, because Compose passes `${VIM_X:-}` as an empty text. `origins` is for
        messages: variable -> the place of its value, for values that are not from the environment.
        """
        ours = environment.ours(os.environ if environ is None else environ)
        ours.pop(CLIENT_KEY, None)
        ours.pop(ADMIN_KEY, None)
        fields = {variable(field): field for field in cls.model_fields}
        mistakes = [environment.unknown(name, fields) for name in ours if name not in fields]
        given = {fields[name]: text for name, text in ours.items() if name in fields and text.strip()}
        try:
            settings = cls.model_validate(given)
        except ValidationError as error:
            mistakes += [_invalid(detail, given, origins or {}) for detail in error.errors()]
        if mistakes:
            raise SettingsError("\n".join(mistakes))
        return settings

    @field_validator(
        "model_family",
        "weights",
        "dtype",
        "preprocess",
        "log_level",
        "device",
        "ready_devices",
        "decode",
        "model_control",
        mode="before",
    )
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return re.sub(r"\s", "", value).lower() if isinstance(value, str) else value

    @field_validator("host")
    @classmethod
    def _without_brackets(cls, value: str) -> str:
        """An IPv6 address may be written as in a URL."""
        return value.removeprefix("[").removesuffix("]")

    @property
    def url(self) -> str:
        """The address of the server for a person on this machine; PORT where a free one is taken."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        named = f"[{host}]" if ":" in host else host
        return f"{'https' if self.tls_cert else 'http'}://{named}:{self.port or 'PORT'}"

    @field_validator("api_keys", "admin_keys", mode="before")
    @classmethod
    def _digests(cls, value: Any) -> Any:
        """Keep digests of the keys only, because settings are shown, compared and sent to the device process."""
        return api_keys.digests(value.split(",")) if isinstance(value, str) else value

    @field_validator("fetch_hosts")
    @classmethod
    def _known_hosts(cls, value: str) -> str:
        hosts.rules(value)
        return value

    @field_validator("models")
    @classmethod
    def _known_names(cls, value: str) -> str:
        return ",".join(f"{name}={source}" for name, source in model_names.read(value).items()) if value else value

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not _DEVICE.fullmatch(value):
            raise ValueError
        return value

    @field_validator("cache_dir", "model_repository", "heads_dir")
    @classmethod
    def _expanded(cls, value: Path | None) -> Path | None:
        try:
            return None if value is None else value.expanduser()
        except RuntimeError as error:  # a container's arbitrary user has no home
            if value == _DEFAULT_CACHE:
                return None
            raise ValueError from error

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> Self:
        # JSON is from another process of the server. It has every field, also those that nobody gave.
        rules.check(self, self.model_fields_set if info.mode == "python" else ())
        return self


def allowed(field: str) -> str:
    """The values that a setting accepts, in words, for messages and documentation."""
    return words.ACCEPTED.get(field) or field_words.accepted(Settings.model_fields[field])


def groups() -> dict[str, list[str]]:
    """The fields by group, in the order of the documentation and of `serve --help`."""
    found: dict[str, list[str]] = {}
    for field in Settings.model_fields:
        if field in words.GROUPS:
            found[words.GROUPS[field]] = members = []
        members.append(field)
    return found


def _invalid(detail: Any, given: Mapping[str, str], origins: Mapping[str, str]) -> str:
    if not detail["loc"]:
        return str(detail["ctx"]["error"])
    field = detail["loc"][0]
    name = origins.get(variable(field), variable(field))
    if field in ("api_keys", "admin_keys"):
        return f"{name} must be {allowed(field)}"  # without the value, which may be a key
    text = given.get(field, str(detail["input"]))
    return f"{name} must be {allowed(field)}, got {text[:100]!r}"
