"""Settings from an environment: defaults, error messages, and variables that only resemble settings."""

from __future__ import annotations

import pickle
from hashlib import sha256
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.errors import SettingsError
from service.fetch.hosts import LOOKS
from service.settings import Settings, allowed, groups, variable


def refusal(**environ: str) -> str:
    """The message of the error for this environment."""
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ)
    return str(caught.value)


def test_an_empty_environment_gives_the_documented_defaults() -> None:
    """An empty environment gives the defaults that the documentation names."""
    assert Settings.load({}).model_dump() == {
        "host": "127.0.0.1",
        "port": 8000,
        "http_workers": 1,
        "tls_cert": None,
        "tls_key": None,
        "api_keys": (),
        "api_keys_file": None,
        "admin_keys": (),
        "admin_keys_file": None,
        "metrics_port": None,
        "grpc_port": None,
        "cors_origins": "",
        "model": "demo",
        "model_name": "",
        "model_family": None,
        "weights": "model",
        "labels": "",
        "models": "",
        "model_repository": None,
        "model_control": "none",
        "model_poll_s": None,
        "heads_dir": None,
        "device": "auto",
        "dtype": "auto",
        "scan": "auto",
        "image_size": None,
        "preprocess": "friendly",
        "decode": "exact",
        "max_batch": None,
        "max_wait_ms": 0,
        "queue_images": 256,
        "queue_bytes": 256 * 1024 * 1024,
        "bulk_percent": 50,
        "overload_status": "429",
        "max_images": 64,
        "max_body_bytes": 20 * 1024 * 1024,
        "max_pixels": 100_000_000,
        "max_decode_bytes": 1 << 30,
        "fetch_hosts": "",
        "fetch_max_bytes": 20 * 1024 * 1024,
        "fetch_timeout_ms": 5_000,
        "fetch_max_urls": 16,
        "fetch_concurrency": 16,
        "request_timeout_ms": 30_000,
        "header_timeout_ms": 10_000,
        "body_timeout_ms": 30_000,
        "watchdog_ms": None,
        "max_restarts": 5,
        "ready_devices": "all",
        "cache_dir": Path("~/.cache/vim-server").expanduser(),
        "offline": False,
        "keep_alive_ms": 75_000,
        "drain_delay_ms": 0,
        "drain_timeout_ms": 25_000,
        "page": True,
        "threads": None,
        "log_level": "info",
        "tracing": False,
    }


def test_values_are_read_and_typed() -> None:
    """Numbers, switches, paths and choices are read, with capitals and extra blanks allowed."""
    settings = Settings.load(
        {
            "VIM_PORT": "80",
            "VIM_MODEL": " ./weights\n",
            "VIM_OFFLINE": "1",
            "VIM_CACHE_DIR": "~/x",
            "VIM_LOG_LEVEL": "DEBUG",
            "VIM_DEVICE": "cuda:0, cuda:1",
            "VIM_MAX_PIXELS": "20_000_000",
            "VIM_IMAGE_SIZE": "384",
            "PATH": "/bin",
            "VIMRUNTIME": "/usr/share/vim",
            "vim_port": "1",
        }
    )

    assert (settings.port, settings.model, settings.offline, settings.log_level) == (80, "./weights", True, "debug")
    assert (settings.device, settings.max_pixels, settings.image_size) == ("cuda:0,cuda:1", 20_000_000, 384)
    assert settings.cache_dir == Path("~/x").expanduser()


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """`load()` reads os.environ by default, and `Settings()` does not read it."""
    monkeypatch.setenv("VIM_QUEUE_IMAGES", "7")

    assert Settings.load().queue_images == 7
    assert Settings().queue_images == 256


def test_a_variable_set_to_nothing_is_unset() -> None:
    """An empty variable counts as unset, since Compose passes optional settings as empty texts."""
    assert Settings.load({"VIM_MAX_BATCH": "", "VIM_PORT": " ", "VIM_MODEL": ""}) == Settings()


def test_settings_are_frozen_and_know_no_other_field() -> None:
    """Settings cannot be changed, and unknown fields are refused."""
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Settings(prot=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("VIM_PROT", "VIM_PORT"),
        ("VIM_QUEUE_IMAGE", "VIM_QUEUE_IMAGES"),
        ("VIM_MAX_BODY_SIZE", "VIM_MAX_BODY_BYTES"),
    ],
)
@pytest.mark.parametrize("value", ["1", ""])
def test_an_unknown_variable_is_refused_with_the_nearest_name(name: str, nearest: str, value: str) -> None:
    """An unknown variable is refused with the setting that has the most similar name."""
    message = refusal(**{name: value})

    assert message.startswith(f"{name} is not a setting")
    assert nearest in message


def test_an_unknown_variable_unlike_any_other_lists_them_all() -> None:
    """An unknown variable without a similar setting is refused with the list of all settings."""
    message = refusal(VIM_XYZZY="1")

    assert all(variable(field) in message for field in Settings.model_fields)


@pytest.mark.parametrize(
    ("name", "value", "must_be"),
    [
        ("VIM_PORT", "http", "an integer between 0 and 65535"),
        ("VIM_PORT", "70000", "an integer between 0 and 65535"),
        ("VIM_IMAGE_SIZE", "32", "an integer, at least 33"),
        ("VIM_MAX_BATCH", "0", "an integer, at least 1"),
        ("VIM_MAX_WAIT_MS", "-1", "an integer, at least 0"),
        ("VIM_THREADS", "two", "an integer, at least 1"),
        ("VIM_OFFLINE", "maybe", "true or false"),
        ("VIM_PREPROCESS", "Nice", "one of friendly, reference"),
        ("VIM_WEIGHTS", "ema", "one of model, model_ema"),
        ("VIM_DTYPE", "int8", "one of auto, float32, bfloat16, float16"),
        ("VIM_LOG_LEVEL", "LOUD", "one of debug, info, warning, error, critical"),
        ("VIM_DEVICE", "tpu", "auto, cpu, cuda, cuda:N or a comma-separated list of cuda:N"),
        ("VIM_FETCH_HOSTS", "https://a.example", LOOKS),
        ("VIM_FETCH_HOSTS", "a.example,,b.example", LOOKS),
        ("VIM_FETCH_HOSTS", "*.example.org", LOOKS),
        ("VIM_FETCH_HOSTS", "127.0.0.1", LOOKS),
        ("VIM_FETCH_HOSTS", "a.example:70000", LOOKS),
        ("VIM_MODEL_NAME", "a/b", "a text without / and ~"),
        ("VIM_MODEL_NAME", "a~b", "a text without / and ~"),
        ("VIM_MODEL_CONTROL", "poll", "one of none, explicit"),
        ("VIM_MODEL_POLL_S", "0", "an integer, at least 1"),
        ("VIM_DEVICE", "cuda:0,cpu", "auto, cpu, cuda, cuda:N or a comma-separated list of cuda:N"),
    ],
)
def test_a_bad_value_names_variable_value_and_what_is_allowed(name: str, value: str, must_be: str) -> None:
    """A bad value is refused with variable, value and allowed values, without pydantic's own text."""
    assert refusal(**{name: value}) == f"{name} must be {must_be}, got {value!r}"


def test_every_mistake_has_its_line() -> None:
    """All mistakes of an environment are reported together, one per line."""
    lines = refusal(VIM_PROT="1", VIM_PORT="x", VIM_OFFLINE="x").splitlines()

    assert [line.split()[0] for line in lines] == ["VIM_PROT", "VIM_PORT", "VIM_OFFLINE"]


def test_a_long_value_is_cut() -> None:
    """A long value is cut in the message, since it may have been pasted by mistake."""
    assert len(refusal(VIM_PORT="x" * 10_000)) < 250


def test_of_api_keys_only_digests_are_kept() -> None:
    """Settings contain digests of API keys and never the keys."""
    key = "correct-horse-battery"
    settings = Settings.load({"VIM_API_KEYS": f"{key}, {key[::-1]}"})

    assert [sha256(one.encode()).hexdigest() for one in (key, key[::-1])] == list(settings.api_keys)
    assert key not in repr(settings)
    assert key.encode() not in pickle.dumps(settings)


@pytest.mark.parametrize("name", ["VIM_API_KEYS", "VIM_ADMIN_KEYS"])
@pytest.mark.parametrize("value", ["short-key", "a key with blanks in it", ",,", "schlüssel-mit-umlaut", "x" * 201])
def test_a_text_that_is_no_key_is_refused_without_being_shown(name: str, value: str) -> None:
    """A key that is not valid is refused without being shown."""
    message = refusal(**{name: value})

    assert message.startswith(f"{name} must be keys, each of 16 to 200")
    assert value not in message.removeprefix(f"{name} must be keys, each of ") or value == ",,"


def test_certificate_and_key_belong_together() -> None:
    """A certificate without a key, or a key without a certificate, is refused."""
    assert "set both or neither" in refusal(VIM_TLS_CERT="/x.pem")


def test_the_clients_key_is_no_setting() -> None:
    """VIM_CLIENT_KEY and VIM_ADMIN_KEY are allowed in the environment, although they are not settings."""
    assert Settings.load({"VIM_CLIENT_KEY": "k" * 20, "VIM_ADMIN_KEY": "k" * 20}) == Settings()


def test_a_batch_larger_than_the_queue_is_refused() -> None:
    """A batch larger than the queue is refused with both variables, since it could never fill."""
    message = refusal(VIM_MAX_BATCH="64", VIM_QUEUE_IMAGES="32")

    assert message == "VIM_MAX_BATCH=64 exceeds VIM_QUEUE_IMAGES=32: such a batch could never fill"
    assert Settings.load({"VIM_MAX_BATCH": "32", "VIM_QUEUE_IMAGES": "32"}).max_batch == 32


def test_fetching_needs_the_network() -> None:
    """VIM_FETCH_HOSTS is refused together with VIM_OFFLINE, which forbids the network."""
    message = refusal(VIM_FETCH_HOSTS="*", VIM_OFFLINE="true")

    assert message == "VIM_FETCH_HOSTS needs the network, which VIM_OFFLINE forbids"


def test_without_a_home_directory_there_is_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's arbitrary user has no home: the default becomes no cache, a given ~ is refused."""

    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)

    settings = Settings.load({})
    assert settings.cache_dir is None
    assert Settings.model_validate_json(settings.model_dump_json()).cache_dir is None
    assert refusal(VIM_CACHE_DIR="~/x") == "VIM_CACHE_DIR must be a directory (~ needs a home directory), got '~/x'"


SERVICE_LINKS = {
    "VIM_SERVICE_HOST": "10.0.0.1",
    "VIM_SERVICE_PORT": "80",
    "VIM_SERVICE_PORT_HTTP": "80",
    "VIM_PORT": "tcp://10.0.0.1:80",
    "VIM_PORT_80_TCP": "tcp://10.0.0.1:80",
    "VIM_PORT_80_TCP_PROTO": "tcp",
    "VIM_PORT_80_TCP_PORT": "80",
    "VIM_PORT_80_TCP_ADDR": "10.0.0.1",
    "VIM_SERVER_SERVICE_HOST": "10.0.0.2",
    "VIM_SERVER_SERVICE_PORT": "8000",
    "VIM_SERVER_SERVICE_PORT_WEB_UI": "8000",
    "VIM_SERVER_PORT": "udp://[fd00::1]:53",
    "VIM_SERVER_PORT_53_UDP": "udp://[fd00::1]:53",
    "VIM_SERVER_PORT_53_UDP_PROTO": "udp",
    "VIM_A_B_C_PORT_1_SCTP_ADDR": "10.0.0.3",
}


@pytest.mark.parametrize("name", SERVICE_LINKS)
def test_a_kubernetes_service_link_is_skipped(name: str) -> None:
    """Variables that Kubernetes sets for a service named vim or vim-server are ignored."""
    assert Settings.load({name: SERVICE_LINKS[name]}) == Settings()


@pytest.mark.parametrize("name", ["VIM_PORT_RANGE", "VIM_SERVICE", "VIM_PORT_80", "VIM_SERVER_PORT"])
def test_what_only_resembles_a_service_link_is_refused(name: str) -> None:
    """A variable that only resembles those of Kubernetes is refused."""
    assert refusal(**{name: "8080"}).startswith(f"{name} is not a setting")


def test_the_editors_own_variables_are_skipped() -> None:
    """The two variables that the editor Vim sets are ignored."""
    assert Settings.load({"VIM_TERMINAL": "901", "VIM_SERVERNAME": "GVIM"}) == Settings()


@pytest.mark.parametrize("field", Settings.model_fields)
def test_every_setting_is_explained(field: str) -> None:
    """Every setting has a description and allowed values for the documentation."""
    description = Settings.model_fields[field].description

    assert description
    assert description.endswith(".")
    assert allowed(field)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("demo", "demo"),
        ("/weights/vim_t.v2.pth", "vim_t.v2"),
        ("models/mine/", "mine"),
        ("models/mine.v2", "mine.v2"),
        ("models/mine~2.pth", "mine-2"),
        ("hustvl/Vim-tiny-midclstok@v1.0:vim_t.pth", "Vim-tiny-midclstok"),
        ("hustvl/Vim-tiny-midclstok:vim_t.pth", "Vim-tiny-midclstok"),
    ],
)
def test_the_served_name_is_the_models_own(model: str, name: str) -> None:
    """The served name is VIM_MODEL_NAME, or that of the model without ending, revision or file."""
    assert name == Settings(model=model).served_name
    assert "other" == Settings(model=model, model_name="other").served_name


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("::", "http://[::1]:8000"),
        ("[::1]", "http://[::1]:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("myhost", "http://myhost:8000"),
    ],
)
def test_the_url_can_be_used(host: str, url: str) -> None:
    """An address of all interfaces is shown as this machine's; IPv6 addresses have brackets, also where given so."""
    assert url == Settings.load({"VIM_HOST": host}).url


def test_every_setting_is_in_one_group() -> None:
    """The groups hold every setting once, in the order of the fields, and no group is empty."""
    members = [field for group in groups().values() for field in group]

    assert [*Settings.model_fields] == members
    assert all(groups().values())
    assert ["api_keys", "api_keys_file"] == groups()["Access"][:2]
