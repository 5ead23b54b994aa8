"""A model hub on loopback: as much of it as ``huggingface_hub`` needs to download one file.

``huggingface_hub`` reads ``HF_ENDPOINT`` and ``HF_HOME`` when it is imported, so whoever talks to
this hub does so in its own process; see :func:`loader`.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from tests.support.commands.serving import Answering, serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CODE = """
import json, sys
from autotune.errors import BackboneError
from autotune.models.backbone import load_backbone
for line in sys.stdin:
    name, size = json.loads(line)
    answer = {"hash": None, "refusal": None}
    try:
        answer["hash"] = load_backbone(name, "hub", size).weights_hash
    except BackboneError as error:
        answer["refusal"] = str(error)
    print(json.dumps(answer), flush=True)
"""


@dataclass
class Hub:
    """A running hub.

    Args:
        url: Its address.
        files: ``owner/name/file`` -> content; more may be added while it runs.
        status: Answer to everything instead of the files, e.g. 500.
        requests: What was asked of it, e.g. ``GET /timm/x/resolve/main/model.safetensors``.
    """

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    status: int | None = None
    requests: list[str] = field(default_factory=list)


@contextmanager
def running_hub(files: Mapping[str, bytes] | None = None) -> Iterator[Hub]:
    with serving(_Handler) as (server, url):
        server.hub = hub = Hub(url, dict(files or {}))  # type: ignore[attr-defined]
        yield hub


class _Handler(Answering, BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        path = self.path.partition("?")[0]
        hub.requests.append(f"{self.command} {path}")
        repository, _, file = path.strip("/").partition("/resolve/main/")
        content = hub.files.get(f"{repository}/{file}")
        status = hub.status or (200 if content is not None or path == "/" else 404)
        if status == 404:
            known = any(file.startswith(f"{repository}/") for file in hub.files)
            self.send(404, headers={"X-Error-Code": "EntryNotFound" if known else "RepoNotFound"})
        elif status == 200 and content:
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            self.send(200, content, {"ETag": etag, "X-Repo-Commit": COMMIT})
        else:
            self.send(status)


@dataclass(frozen=True)
class Answer:
    hash: str | None
    refusal: str | None


class Loader:
    """A process that loads backbones from another hub."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def load(self, name: str, size: int | None = None) -> Answer:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps([name, size]), file=self._process.stdin, flush=True)
        return Answer(**json.loads(self._process.stdout.readline()))


@contextmanager
def loader(url: str, home: Path) -> Iterator[Loader]:
    """Start a process that asks the hub at ``url`` and caches in ``home``; it may say nothing."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
    }
    with subprocess.Popen(
        [sys.executable, "-c", CODE],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield Loader(process)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")
