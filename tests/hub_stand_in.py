"""A local stand-in of the Hub's API: repositories that can be made, read and committed to."""

import base64
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit


class StandIn:
    """
    Args:
        repositories (`dict`): Name to `{"private": bool, "files": {path: bytes}}`.
    """

    def __init__(self, repositories=None):
        self.repositories, self.tokens = repositories or {}, set()

    def answer(self, method, path, body):
        """Status and content of the answer to a request."""
        parts = path.strip("/").split("/")
        if parts == ["api", "validate-yaml"]:
            return 200, {"errors": [], "warnings": []}
        if parts == ["api", "whoami-v2"]:
            return 200, {"name": "me", "orgs": []}
        if parts[:3] == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            if name in self.repositories:
                return 409, {"error": "exists", "url": f"https://huggingface.co/{name}"}
            self.repositories[name] = {
                "private": asked.get("private", asked.get("visibility") == "private"),
                "files": {},
            }
            return 200, {"url": f"https://huggingface.co/{name}"}
        name, *rest = "/".join(parts[2:4]), *parts[4:]
        if parts[:2] != ["api", "models"] or name not in self.repositories:
            return 404, {"error": "Repository not found"}
        return self._of_repository(name, rest, body)

    def _of_repository(self, name, rest, body):
        files = self.repositories[name]["files"]
        if rest and rest[0] == "preupload":
            asked = json.loads(body)["files"]
            return 200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
        if rest and rest[0] == "commit":
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                elif entry["key"] == "deletedFile":
                    del files[entry["value"]["path"]]
            return 200, {"commitUrl": f"https://huggingface.co/{name}/commit/1", "commitOid": "1" * 40}
        if rest and rest[0] == "tree":
            return 200, [{"type": "file", "path": path, "size": len(files[path]), "oid": "1"} for path in files]
        siblings = [{"rfilename": path} for path in files]
        return 200, {"id": name, "private": self.repositories[name]["private"], "siblings": siblings, "sha": "1" * 40}


@contextmanager
def serving(hub):
    """The address at which a [`StandIn`] answers."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.tokens.add(self.headers.get("Authorization"))
            status, content = hub.answer(self.command, urlsplit(self.path).path, body)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        do_GET = do_POST = _answer

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
