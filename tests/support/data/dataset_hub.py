"""As much of a hub of data sets on loopback as the library ``datasets`` needs.

Like the hub of models it is known to the library by ``HF_ENDPOINT``, which is read at import: who
talks to it does so in its own process; see :func:`opened`.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

from tests.support.commands.serving import Answering, serving

CODE = """
import json, logging, sys
import numpy as np
from autotune.data.sources.registry import open_source
from autotune.errors import UserError
logging.basicConfig(level=logging.WARNING, format="%(message)s")
for name in sys.argv[1:]:
    name, _, splits = name.partition(" ")
    try:
        source = open_source(name, splits=json.loads(splits) if splits else "auto")
        samples = [[one.key, one.label, one.split, one.group] for one in source.samples]
        reads = [np.asarray(source.read(one)).mean(axis=(0, 1)).tolist() for one in source.samples]
        answer = {"classes": source.classes, "samples": samples, "colors": reads,
                  "fingerprint": source.fingerprint, "passed_over": source.passed_over}
    except UserError as error:
        answer = {"refusal": str(error)}
    print(json.dumps(answer))
"""


@dataclass
class DatasetHub:
    """A running hub.

    Args:
        url: Its address.
        files: ``owner/name/file`` -> content.
        revision: The commit of its main branch.
        requests: What was asked of it.
    """

    url: str
    files: dict[str, bytes]
    revision: str = "a" * 40
    requests: list[str] = field(default_factory=list)


@contextmanager
def running_hub(files: Mapping[str, bytes]) -> Iterator[DatasetHub]:
    with serving(_Handler) as (server, url):
        server.hub = hub = DatasetHub(url, dict(files))  # type: ignore[attr-defined]
        yield hub


class _Handler(Answering, BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub: DatasetHub = self.server.hub  # type: ignore[attr-defined]
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length).decode()
        path = unquote(self.path.partition("?")[0]).strip("/")
        hub.requests.append(f"{self.command} {self.path} {body}")
        if path.startswith("api/datasets/"):
            self._answer_api(hub, path.removeprefix("api/datasets/"), body)
        elif "/resolve/" in path:
            repository, _, rest = path.removeprefix("datasets/").partition("/resolve/")
            self._send_file(hub, repository, rest.partition("/")[2])
        else:
            self.send(404)

    def _answer_api(self, hub: DatasetHub, path: str, body: str) -> None:
        owner, name, *rest = path.split("/")
        repository = f"{owner}/{name}"
        names = [
            file.removeprefix(f"{repository}/")
            for file in hub.files
            if file.startswith(f"{repository}/")
        ]
        if not names:
            self.send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif not rest or rest[0] == "revision":
            siblings = [{"rfilename": name} for name in names]
            known = {"id": repository, "sha": hub.revision, "siblings": siblings, "tags": []}
            self._send_json({**known, "private": False, "downloads": 0, "likes": 0})
        elif rest[0] == "tree":
            under = "/".join(rest[2:])
            recursive = "recursive=true" in self.path.lower()
            folders = [one for one in _folders(names) if recursive and one.startswith(under)]
            folders = folders or [under]
            self._send_json(
                [entry for two in folders for entry in self._entries(hub, repository, names, two)]
            )
        elif rest[0] == "paths-info":
            asked = parse_qs(body).get("paths") or json.loads(body)["paths"]
            everything = [
                entry
                for under in {""} | {str(Path(n).parent) for n in names if "/" in n}
                for entry in self._entries(hub, repository, names, under)
            ]
            self._send_json([one for one in everything if one["path"] in asked])
        else:
            self.send(404)

    def _entries(
        self, hub: DatasetHub, repository: str, names: list[str], under: str
    ) -> list[dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for name in names:
            inside = name.removeprefix(f"{under}/") if under else name
            if under and inside == name:
                continue
            first, _, more = inside.partition("/")
            path = f"{under}/{first}" if under else first
            content = hub.files[f"{repository}/{name}"]
            oid = hashlib.sha1(content).hexdigest()
            if more:
                found[path] = {"type": "directory", "path": path, "oid": oid, "size": 0}
            else:
                found[path] = {"type": "file", "path": path, "oid": oid, "size": len(content)}
        return list(found.values())

    def _send_file(self, hub: DatasetHub, repository: str, file: str) -> None:
        content = hub.files.get(f"{repository}/{file}")
        headers = {"X-Repo-Commit": hub.revision}
        if content is None:
            known = any(file.startswith(f"{repository}/") for file in hub.files)
            code = "EntryNotFound" if known else "RepoNotFound"
            self.send(404, b"", {**headers, "X-Error-Code": code})
        else:
            etag = hashlib.sha1(content).hexdigest()
            self.send(200, content, {**headers, "ETag": f'"{etag}"'})

    def _send_json(self, value: object) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})


def _folders(names: Sequence[str]) -> list[str]:
    """Return all folders of a repository, its root (an empty name) first."""
    parents = {parent.as_posix() for name in names for parent in Path(name).parents}
    return ["", *sorted(parents - {"."})]


def opened(
    names: Sequence[str], url: str, home: Path, **extra: str
) -> tuple[list[dict[str, Any]], str]:
    """Open data sets in one process that asks the hub at ``url`` and caches in ``home``.

    Returns:
        What came of each, and what was written to standard error.
    """
    environment = {
        **os.environ,
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **extra,
    }
    ended = subprocess.run(
        [sys.executable, "-c", CODE, *names],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return [json.loads(line) for line in ended.stdout.splitlines()], ended.stderr
