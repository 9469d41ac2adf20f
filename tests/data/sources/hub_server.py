"""A Hugging Face Hub on loopback that serves one folder as a data set: as much of the protocol as reading takes."""

import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """Serves `folder` as the data set `name`. `requested` are the paths of data that were read."""

    def __init__(self, folder: Path, name: str):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.name = folder, name
        self.requested: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments) -> None:
        pass

    def _send(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: object) -> None:
        self._send(json.dumps(value).encode(), Content_Type="application/json")

    def _missing(self, code: str) -> None:
        self._send(b"{}", 404, X_Error_Code=code)

    def _entry(self, path: Path) -> dict[str, object]:
        name = path.relative_to(self.server.folder).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": "d" * 40, "size": 0}
        return {"type": "file", "path": name, "oid": "f" * 40, "size": path.stat().st_size}

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        asked = json.loads(body)["paths"] if body.startswith("{") else re.findall(r"paths=([^&]*)", body)
        found = [self.server.folder / name.replace("%2F", "/") for name in asked]
        self._json([self._entry(path) for path in found if path.exists()])

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, name = self.path.partition("?")[0], self.server.name
        if path.startswith(f"/datasets/{name}/resolve/"):
            revision, _, file = path.removeprefix(f"/datasets/{name}/resolve/").partition("/")
            self._file(revision, self.server.folder / file.replace("%2F", "/"))
        elif not path.startswith(f"/api/datasets/{name}"):
            self._missing("RepoNotFound")
        elif match := re.fullmatch(r"/tree/([^/]+)/?(.*)", path.removeprefix(f"/api/datasets/{name}")):
            folder = self.server.folder / match[2]
            if not folder.is_dir():
                self._missing("EntryNotFound")
                return
            found = folder.rglob("*") if "recursive=true" in self.path.lower() else folder.iterdir()
            self._json([self._entry(entry) for entry in sorted(found)])
        else:
            revision = re.search(r"/revision/([^/]+)", path)
            if revision and revision[1] not in ("main", COMMIT):
                self._missing("RevisionNotFound")
                return
            files = [e for e in sorted(self.server.folder.rglob("*")) if e.is_file()]
            siblings = [{"rfilename": e.relative_to(self.server.folder).as_posix()} for e in files]
            self._json({"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})

    def _file(self, revision: str, path: Path) -> None:
        if not path.is_file():
            self._missing("EntryNotFound")
            return
        content = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if self.command == "GET":
            self.server.requested.append(path.name)
        headers = {"ETag": f'"{"f" * 40}"', "Accept_Ranges": "bytes"}
        if asked:
            start, stop = int(asked[1]), int(asked[2] or len(content) - 1) + 1
            headers["Content_Range"] = f"bytes {start}-{min(stop, len(content)) - 1}/{len(content)}"
            self._send(content[start:stop], 206, **headers)
        else:
            self._send(content, **headers)
