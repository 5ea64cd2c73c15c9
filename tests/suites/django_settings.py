"""Settings of Django's own tests: two aliases of the target that the environment names, by mysqlclient."""

from __future__ import annotations

import os
from typing import Any


def _database(name: str) -> dict[str, Any]:
    return {
        "ENGINE": "django.db.backends.mysql",
        "HOST": os.environ["SUITES_HOST"],
        "PORT": os.environ["SUITES_PORT"],
        "USER": os.environ["SUITES_USER"],
        "PASSWORD": os.environ["SUITES_PASSWORD"],
        "NAME": name,
        "TEST": {"NAME": f"test_{name}", "CHARSET": "utf8mb4"},
    }


DATABASES = {"default": _database("django"), "other": _database("django_other")}
SECRET_KEY = "of tests only"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False
