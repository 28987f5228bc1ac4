"""An object store for tests: what fsspec finds under s3://, and the same objects over HTTP for tensorstore.

As much of Amazon's S3 as a checkpoint needs, in memory. `scripts/test.sh` needs nothing but this; with s3fs
and moto installed `test_checkpoint_s3` tries their server too.
"""

import contextlib
import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry


class Objects(MemoryFileSystem):
    """s3:// in memory."""

    protocol = ("s3", "s3a")
    store: dict = {}  # noqa: RUF012 - fsspec's own way: one store for all instances
    pseudo_dirs: list = [""]  # noqa: RUF012
    read_only = False  # over HTTP

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(re.sub("^s3a?://", "memory://", str(path)))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _object(self):
        files, path = Objects(), unquote(urlsplit(self.path).path)
        data = files.cat_file(path) if files.isfile(path) else None
        return files, path, data, None if data is None else f'"{hashlib.md5(data).hexdigest()}"'

    def do_GET(self):
        if "list-type" in parse_qs(urlsplit(self.path).query):
            self._list()
            return
        _, _, data, tag = self._object()
        if data is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        elif self.headers.get("If-None-Match") == tag:
            self._answer(304, ETag=tag)
        elif self.headers.get("If-Match", tag) != tag:
            self._answer(412)
        elif found := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(found[1]), min(int(found[2] or len(data)), len(data) - 1)
            span = f"bytes {first}-{last}/{len(data)}"
            self._answer(206, data[first : last + 1], ETag=tag, Content_Range=span)
        else:
            self._answer(200, data, ETag=tag)

    do_HEAD = do_GET

    def do_PUT(self):
        files, path, _, tag = self._object()
        if files.read_only:
            self.close_connection = True
            self._answer(403, b"<Error><Code>AccessDenied</Code></Error>")
            return
        data = self.rfile.read(int(self.headers["Content-Length"]))
        unwanted = self.headers.get("If-None-Match") == "*" and tag is not None
        if unwanted or self.headers.get("If-Match", tag) != tag:
            self._answer(412)
            return
        files.pipe_file(path, data)
        self._answer(200, ETag=f'"{hashlib.md5(data).hexdigest()}"')

    def do_DELETE(self):
        files, path, data, _ = self._object()
        if data is not None:
            files.rm_file(path)
        self._answer(204)

    def _list(self):
        place = urlsplit(self.path)
        bucket, prefix = unquote(place.path).strip("/"), parse_qs(place.query).get("prefix", [""])[0]
        keys = [name.removeprefix(f"/{bucket}/") for name in Objects().find(f"/{bucket}")]
        found = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>0</Size></Contents>"
            for key in sorted(keys)
            if key.startswith(prefix)
        )
        self._answer(
            200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>".encode()
        )


@contextlib.contextmanager
def serving(monkeypatch):
    """s3:// is this store while the block lasts; gives its file system."""
    Objects.store.clear()
    Objects.pseudo_dirs[:] = [""]
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setitem(_registry, "s3", Objects)
    backend.fsspec_backend._get_filesystem.cache_clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_REGION", "here-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    try:
        yield Objects()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        backend.fsspec_backend._get_filesystem.cache_clear()
        Objects.store.clear()
