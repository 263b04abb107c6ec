"""Starts servers in processes of their own and speaks raw HTTP to them."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

TESTS = os.path.dirname(os.path.abspath(__file__))
WAIT = 30  # seconds; nothing here may take longer, and everything that waits is given this bound


class ServerProcess:
    """`with ServerProcess([...command]) as server:`; killed at the end if it still runs."""

    def __init__(self, command, env=None):
        environment = dict(os.environ, **(env or {}))
        environment["PYTHONPATH"] = os.pathsep.join(
            [os.path.dirname(TESTS), TESTS] + environment.get("PYTHONPATH", "").split(os.pathsep)
        )
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, universal_newlines=True
        )
        self.lines = []
        self._address = None
        self._found = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._found.wait(WAIT) or self._address is None:
            self.process.kill()
            raise AssertionError("The server did not start: %s" % "".join(self.lines))

    @classmethod
    def known(cls, **settings):
        """A server of `KnownPredictor`; see serving_child.py."""
        return cls([sys.executable, os.path.join(TESTS, "serving_child.py"), json.dumps(settings)])

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line)
            match = re.search(r"Serving .* at (https?)://([\d.]+|\[[\d:]+\]):(\d+)", line)
            if match:
                self._address = match.group(2).strip("[]"), int(match.group(3))
                self._found.set()
        self._found.set()

    @property
    def port(self):
        return self._address[1]

    @property
    def url(self):
        return "http://127.0.0.1:%d" % self.port

    @property
    def log(self):
        return "".join(self.lines)

    def connect(self, timeout=WAIT):
        return socket.create_connection(self._address, timeout)

    def request(self, method, path, body=None, headers=None, timeout=WAIT):
        """(status, headers in lower case, body bytes)."""
        connection = http.client.HTTPConnection(self._address[0], self.port, timeout=timeout)
        try:
            given = {"Content-Type": "application/json"} if body is not None else {}
            given.update(headers or {})
            connection.request(method, path, body=body, headers=given)
            response = connection.getresponse()
            data = response.read()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, data
        finally:
            connection.close()

    def predict(self, inputs, timeout=WAIT, **keys):
        status, _, body = self.request("POST", "/predict", json.dumps(dict(keys, inputs=inputs)), timeout=timeout)
        return status, json.loads(body)

    def metric(self, name):
        """The sum of a metric's samples over its labels."""
        text = self.request("GET", "/metrics")[2].decode()
        return sum(
            float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if re.match(re.escape(name) + r"[{ ]", line)
        )

    def resident_bytes(self):
        with open("/proc/%d/statm" % self.process.pid) as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def open_files(self):
        return len(os.listdir("/proc/%d/fd" % self.process.pid))

    def stop(self):
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(WAIT)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(WAIT)
        self._reader.join(WAIT)
        self.process.stderr.close()


def read_all(connection, seconds=WAIT):
    """What a socket sends until it is closed."""
    connection.settimeout(seconds)
    chunks = []
    while True:
        try:
            data = connection.recv(65536)
        except ConnectionResetError:
            break
        if not data:
            break
        chunks.append(data)
    return b"".join(chunks)


def until(condition, seconds=WAIT):
    """Polls a condition; False when it never held."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False
