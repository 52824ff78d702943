"""The settings of the server: their fields, their values in words, and the rules between them."""

from __future__ import annotations

from service.settings.settings import ADMIN_KEY, CLIENT_KEY, Settings, allowed, groups
from service.system.environment import variable

__all__ = ["ADMIN_KEY", "CLIENT_KEY", "Settings", "allowed", "groups", "variable"]
