"""The settings in words, where the types of the fields do not say it: accepted values, and headings of groups."""

from __future__ import annotations

from service import api_keys
from service.fetch import hosts
from service.settings import model_names

ACCEPTED = {
    "model_name": "a text without / and ~",
    "model_family": "vim, videomamba or mamba-reg",
    "models": model_names.LIST,
    "model_repository": "a directory (~ needs a home directory)",
    "device": "auto, cpu, cuda, cuda:N or a comma-separated list of cuda:N",
    "heads_dir": "a directory (~ needs a home directory)",
    "cache_dir": "a directory (~ needs a home directory)",
    "tls_cert": "a file",
    "tls_key": "a file",
    "api_keys": f"keys, each of {api_keys.LOOKS}",
    "api_keys_file": "a file",
    "admin_keys": f"keys, each of {api_keys.LOOKS}",
    "admin_keys_file": "a file",
    "fetch_hosts": hosts.LOOKS,
}
# The first field of each group: a group ends where the next one begins.
GROUPS = {
    "host": "Listening",
    "api_keys": "Access",
    "model": "Model",
    "device": "Device",
    "preprocess": "Images",
    "max_batch": "Batches and queue",
    "max_images": "Limits of a request",
    "fetch_hosts": "Images by URL",
    "request_timeout_ms": "Time limits",
    "watchdog_ms": "Faults and shutdown",
    "log_level": "Log and traces",
}
