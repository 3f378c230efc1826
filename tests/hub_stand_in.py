"""A stand-in for the hub on this machine: the branch refs/convert/parquet of data sets, over HTTP."""

import hashlib
import http.server
import json
import threading
import urllib.parse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class StandIn:
    """Serves `files`, path -> content, of one data set; `asked` lists what was fetched. Use as a context."""

    def __init__(self, repo: str, files: dict[str, bytes]):
        self.repo, self.files, self.asked = repo, files, []
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: StandIn

    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        api, files = f"/api/datasets/{self.hub.repo}", f"/datasets/{self.hub.repo}/resolve/{COMMIT}/"
        headers = {"X-Repo-Commit": COMMIT}
        if path == "/":
            body = b""
        elif path == f"{api}/revision/refs/convert/parquet":
            body = json.dumps({"id": self.hub.repo, "sha": COMMIT, "siblings": []}).encode()
        elif path.startswith(f"{api}/tree/{COMMIT}"):
            body = json.dumps([{"type": "file", "path": name, "size": len(content),
                                "oid": hashlib.sha1(content).hexdigest()}
                               for name, content in self.hub.files.items()]).encode()
        elif path.startswith(files) and path.removeprefix(files) in self.hub.files:
            name = path.removeprefix(files)
            body = self.hub.files[name]
            headers["ETag"] = f'"{hashlib.sha1(body).hexdigest()}"'
            if self.command == "GET":
                self.hub.asked.append(name)
        else:
            self.send_error(404)
            return
        self.send_response(200)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass
