"""A bucket of Google Cloud Storage on this machine, in memory: as much of its JSON API as Google's client and
TensorStore use, with generations, preconditions, ranges, and multipart and resumable uploads.

    python tests/gcs_server.py PORT     serves the bucket "bucket" until it is stopped, and prints the variables to set
"""

import base64
import contextlib
import datetime
import email
import email.policy
import itertools
import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

import google_crc32c


def crc32c(data: bytes) -> str:
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


WRITES = ("POST", "PUT", "DELETE")


class Stored(NamedTuple):
    data: bytes
    generation: int
    updated: str


class Server(ThreadingHTTPServer):
    """Attributes:
    objects: by (bucket, name).
    failing: the status that requests of the methods in `failing_methods` are answered with; 0: they are done.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int = 0, buckets: tuple[str, ...] = ("bucket",)):
        super().__init__(("127.0.0.1", port), Handler)
        self.buckets = buckets
        self.objects: dict[tuple[str, str], Stored] = {}
        self.uploads: dict[str, tuple[str, dict, bytearray]] = {}
        self.generations = itertools.count(1_700_000_000_000_000)
        self.lock = threading.Lock()
        self.failing, self.failing_methods = 0, WRITES

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """What lets Google's client and TensorStore find the server."""
        return {"STORAGE_EMULATOR_HOST": self.address, "TENSORSTORE_GCS_HTTP_URL": self.address}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm, wbufsize = True, 1 << 16  # headers and body in one packet: else a body waits 40 ms
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        self.query = dict(parse_qsl(url.query, keep_blank_values=True))
        self.body = self.read_body()
        with self.server.lock:
            if self.server.failing and self.command in self.server.failing_methods:
                return self.fail(self.server.failing, "failing as it was told to")
            found = re.fullmatch(r"(/upload|/download)?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?", url.path)
            if not found:
                return self.fail(501, f"{self.command} {self.path}")
            bucket, name = found[2], found[3]
            if bucket not in self.server.buckets:
                return self.fail(404, "The specified bucket does not exist.")
            if name and "/rewriteTo/" in name:
                return self.rewrite(bucket, name)
            if found[1] == "/upload":
                return self.upload(bucket, unquote(name or ""))
            if name:
                return self.one(bucket, unquote(name))
            if url.path.endswith("/o"):
                return self.listing(bucket)
            return self.answer({"kind": "storage#bucket", "name": bucket, "location": "HERE"})

    do_GET = do_POST = do_PUT = do_DELETE = handle_any

    def read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    # answers

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer(self, value: dict, status: int = 200, **headers: str) -> None:
        self.send(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def fail(self, status: int, message: str) -> None:
        self.answer({"error": {"code": status, "message": message}}, status)

    def meta(self, bucket: str, name: str) -> dict:
        found = self.server.objects[bucket, name]
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(len(found.data)),
            "generation": str(found.generation),
            "metageneration": "1",
            "crc32c": crc32c(found.data),
            "updated": found.updated,
            "timeCreated": found.updated,
        }

    def matches(self, bucket: str, name: str) -> bool:
        """Whether the preconditions of the request hold."""
        found = self.server.objects.get((bucket, name))
        there = found.generation if found else 0
        wanted, other = self.query.get("ifGenerationMatch"), self.query.get("ifGenerationNotMatch")
        return (wanted is None or int(wanted) == there) and (other is None or int(other) != there)

    def store(self, bucket: str, name: str, data: bytes) -> None:
        if not self.matches(bucket, name):
            return self.fail(412, "At least one of the pre-conditions you specified did not hold.")
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        self.server.objects[bucket, name] = Stored(bytes(data), next(self.server.generations), now)
        return self.answer(self.meta(bucket, name))

    # requests

    def upload(self, bucket: str, name: str) -> None:
        kind, name = self.query.get("uploadType"), self.query.get("name", name)
        if kind == "media":
            return self.store(bucket, name, self.body)
        if kind == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            meta, data = email.message_from_bytes(head + self.body, policy=email.policy.HTTP).iter_parts()
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            # the parser changes line ends of what it takes for text: the bytes are cut out instead
            data = self.body.split(b"--" + boundary)[2].split(b"\r\n\r\n", 1)[1][:-2]
            return self.store(bucket, json.loads(meta.get_content())["name"], data)
        if self.command == "POST":  # a resumable upload begins
            name = json.loads(self.body or b"{}").get("name", name)
            identity = str(next(self.server.generations))
            self.server.uploads[identity] = name, self.query, bytearray()
            where = f"{self.server.address}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={identity}"
            return self.answer({}, Location=where)
        name, query, data = self.server.uploads[self.query["upload_id"]]
        data += self.body
        last, _, total = self.headers["Content-Range"].partition("-")[2].partition("/")
        if total == "*" or int(last) + 1 < int(total):
            return self.send(308, b"", Range=f"bytes=0-{len(data) - 1}")
        self.query = query
        return self.store(bucket, name, data)

    def one(self, bucket: str, name: str) -> None:
        found = self.server.objects.get((bucket, name))
        if self.command == "DELETE" and found and self.matches(bucket, name):
            del self.server.objects[bucket, name]
            return self.send(204, b"")
        if not found:
            return self.fail(404, f"No such object: {bucket}/{name}")
        if not self.matches(bucket, name):
            return self.fail(304 if "ifGenerationNotMatch" in self.query and self.command == "GET" else 412, "changed")
        if self.query.get("alt") != "media":
            return self.answer(self.meta(bucket, name))
        size = len(found.data)
        headers = {
            "x_goog_generation": str(found.generation),
            "x_goog_hash": f"crc32c={crc32c(found.data)}",
            "Content_Type": "application/octet-stream",
            "x_goog_stored_content_length": str(size),
        }
        part = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not part:
            return self.send(200, found.data, **headers)
        first = int(part[1]) if part[1] else max(size - int(part[2]), 0)
        end = min(int(part[2]) + 1, size) if part[1] and part[2] else size
        if first >= size:
            return self.fail(416, "outside")
        del headers["x_goog_hash"]  # of the whole object
        return self.send(206, found.data[first:end], Content_Range=f"bytes {first}-{end - 1}/{size}", **headers)

    def listing(self, bucket: str) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        first, end = self.query.get("startOffset", ""), self.query.get("endOffset", "")
        items, prefixes = [], set()
        for name in sorted(n for b, n in self.server.objects if b == bucket and n.startswith(prefix)):
            rest = name[len(prefix) :]
            if name < first or (end and name >= end) or name <= self.query.get("pageToken", ""):
                continue
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                items.append(name)
        most = int(self.query.get("maxResults", 1000))
        more = {"nextPageToken": items[most - 1]} if len(items) > most else {}
        found = {"kind": "storage#objects", "items": [self.meta(bucket, n) for n in items[:most]], **more}
        self.answer(found | ({"prefixes": sorted(prefixes)} if prefixes else {}))

    def rewrite(self, bucket: str, name: str) -> None:
        source, _, target = name.partition("/rewriteTo/b/")
        to, _, new = target.partition("/o/")
        found = self.server.objects.get((bucket, unquote(source)))
        if not found:
            return self.fail(404, f"No such object: {bucket}/{unquote(source)}")
        self.server.objects[to, unquote(new)] = found._replace(generation=next(self.server.generations))
        size = str(len(found.data))
        return self.answer(
            {
                "kind": "storage#rewriteResponse",
                "done": True,
                "totalBytesRewritten": size,
                "objectSize": size,
                "resource": self.meta(to, unquote(new)),
            }
        )


@contextlib.contextmanager
def serving(port: int = 0) -> Iterator[Server]:
    """A server for the length of the block."""
    with Server(port) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    with serving(int(sys.argv[1])) as running:
        print(*(f"export {name}={value}" for name, value in running.environment.items()), sep="\n", flush=True)
        threading.Event().wait()
