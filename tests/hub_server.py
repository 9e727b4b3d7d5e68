"""A Hugging Face hub in this process: the endpoints that creating, uploading and downloading call; files in memory."""

import base64
import contextlib
import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_test"


@dataclasses.dataclass
class Hub:
    """Attributes:
    repos: {user/name: {path: content}}.
    calls: "METHOD path" of each request.
    faults: [(pattern of a call, status)], each used once.
    """

    url: str = ""
    repos: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    calls: list[str] = dataclasses.field(default_factory=list)
    faults: list[tuple[str, int]] = dataclasses.field(default_factory=list)


def commit_of(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format, *args):
        pass

    def reply(self, status, content, **headers):
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {"Content-Type": "application/json"} | headers
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def missing(self, code):
        self.reply(404, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        call = f"{self.command} {path}"
        self.hub.calls.append(call)
        for fault in self.hub.faults:
            if re.search(fault[0], call):
                self.hub.faults.remove(fault)
                return self.reply(fault[1], {"error": "made to fail"})
        if self.command == "POST" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.reply(401, {"error": "Invalid username or password."})
        if path == "/api/validate-yaml":
            return self.reply(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            return self.download(*found.groups())
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree|preupload|commit)(?:/.*)?)?", path)
        if not found or found[1] not in self.hub.repos:
            return self.missing("RepoNotFound")
        return self.model(found[1], found[2], body)

    do_POST = do_HEAD = do_GET

    def create(self, wanted):
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        status = 409 if name in self.hub.repos else 200
        self.hub.repos.setdefault(name, {".gitattributes": b""})
        self.reply(status, {"url": f"{self.hub.url}/{name}", "name": name})

    def download(self, name, file):
        if name not in self.hub.repos:
            return self.missing("RepoNotFound")
        files = self.hub.repos[name]
        if file not in files:
            return self.missing("EntryNotFound")
        self.reply(200, files[file], ETag=f'"{git_id(files[file])}"', X_Repo_Commit=commit_of(files))

    def model(self, name, action, body):
        files = self.hub.repos[name]
        sha = commit_of(files)
        if action in (None, "revision"):
            listed = [{"rfilename": path} for path in sorted(files)]
            return self.reply(200, {"id": name, "modelId": name, "sha": sha, "tags": [], "siblings": listed})
        if action == "tree":
            entry = lambda p: {"type": "file", "path": p, "oid": git_id(files[p]), "size": len(files[p])}
            return self.reply(200, [entry(path) for path in sorted(files)])
        if action == "preupload":
            asked = [file["path"] for file in json.loads(body)["files"]]
            known = lambda p: {"oid": git_id(files[p])} if p in files else {}
            modes = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} | known(p) for p in asked]
            return self.reply(200, {"files": modes, "commitOid": sha})
        for line in body.decode().splitlines():
            change = json.loads(line)
            if change["key"] == "file":
                files[change["value"]["path"]] = base64.b64decode(change["value"]["content"])
            elif change["key"] == "deletedFile":
                files.pop(change["value"]["path"], None)
        sha = commit_of(files)
        self.reply(200, {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"})


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """A running hub."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
