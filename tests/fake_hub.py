"""A hub on this machine: as much of the Hugging Face hub's HTTP interface as its client asks for to fetch a model."""

import hashlib
import http.server
import json
import os
import threading

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves repositories over HTTP while the `with` block lasts.

    Attributes:
        endpoint: for HF_ENDPOINT.
        requests: (method, path) of all that came.
    """

    def __init__(self, repositories):
        """Args: repositories: "user/model" -> the folder that holds its files."""
        self.requests = []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_HEAD(self):
                self.answer(False)

            def do_GET(self):
                self.answer(True)

            def answer(self, whole):
                path = self.path.split("?")[0]
                hub.requests.append((self.command, path))
                for name, folder in repositories.items():
                    if path.startswith("/api/models/" + name):
                        return self.describe(name, str(folder), path)
                    if path.startswith("/%s/resolve/" % name):
                        file = os.path.join(str(folder), path.split("/", 5)[5])
                        if os.path.isfile(file):
                            return self.send_file(file, whole)
                self.send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"}, whole)

            def describe(self, name, folder, path):
                files = sorted(os.listdir(folder))
                if "/tree/" in path:
                    sizes = [os.path.getsize(os.path.join(folder, file)) for file in files]
                    value = [dict(type="file", path=file, size=size, oid="0") for file, size in zip(files, sizes)]
                else:
                    value = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
                self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, True)

            def send_file(self, file, whole):
                with open(file, "rb") as source:
                    content = source.read()
                headers = {"X-Repo-Commit": COMMIT, "ETag": '"%s"' % hashlib.sha1(content).hexdigest()}
                self.send(200, content, headers, whole)

            def send(self, status, content, headers, whole):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if whole:
                    self.wfile.write(content)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = "http://127.0.0.1:%d" % self._server.server_address[1]

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self._server.shutdown()
        self._server.server_close()
