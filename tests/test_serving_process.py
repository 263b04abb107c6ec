"""The server as a process: sockets, signals, slow and vanished clients, logs."""

import http.client
import json
import os
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

for package in ("tokenizers", "starlette", "uvicorn", "httptools", "orjson", "prometheus_client"):
    pytest.importorskip(package)

from serving_fakes import KnownPredictor  # noqa: E402
from serving_process import TESTS, WAIT, ServerProcess, read_all, until  # noqa: E402

from ftbert.errors import CheckpointError, ConfigError  # noqa: E402
from ftbert.serving import run  # noqa: E402

BODY = b'{"inputs": "abc"}'
POST = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(BODY)


@pytest.fixture(scope="module")
def server():
    """A server that gives clients half a second; shared by tests that leave it as they found it."""
    with ServerProcess.known(options={"receive_timeout_s": 0.5, "keep_alive_s": 1.0, "max_body_bytes": 4096}) as made:
        yield made
        assert made.stop() == 0, made.log


def healthy(server):
    status, answer = server.predict("abc")
    return status == 200 and len(answer) == 3


def test_a_request_on_a_kept_connection(server):
    with server.connect() as connection:
        for _ in range(3):
            connection.sendall(POST + BODY)
            response = http.client.HTTPResponse(connection)
            response.begin()
            assert response.status == 200 and len(json.loads(response.read())) == 3


def test_an_answers_head_and_body_arrive_together(server):
    with server.connect() as connection:
        for _ in range(20):
            connection.sendall(POST + BODY)
            head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200") and len(json.loads(body)) == 3


def test_pipelined_requests_are_answered_in_order(server):
    with server.connect() as connection:
        connection.sendall((POST + BODY) * 5 + POST.replace(b"host", b"connection: close\r\nhost") + BODY)
        assert read_all(connection).count(b"HTTP/1.1 200") == 6


@pytest.mark.parametrize(
    "sent, expected",
    [
        (b"", b""),  # connects and says nothing
        (b"POST /pre", b"HTTP/1.1 408"),
        (POST[:-2], b"HTTP/1.1 408"),
        (POST + BODY[:5], b"HTTP/1.1 408"),
        (POST + BODY + POST[:20], b"HTTP/1.1 200"),  # an answer, then silence
    ],
)
def test_a_client_that_stalls_is_cut_off(server, sent, expected):
    with server.connect() as connection:
        if sent:
            connection.sendall(sent)
        answer = read_all(connection, 5)  # less than servers give clients unless they are told otherwise
    assert answer.startswith(expected) and (expected or not answer), answer
    assert healthy(server)


def test_a_client_that_drips_is_cut_off_as_well(server):
    with server.connect() as connection, pytest.raises(OSError):
        for _ in range(100):
            connection.sendall(b"P")
            time.sleep(0.05)
    assert healthy(server)


def test_garbage_headers_and_too_many_of_them(server):
    for sent, status in (
        (b"\x16\x03\x01\x02\x00\x01garbage\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n" + b"a: %s\r\n" % (b"b" * 70000), b"431"),
        (b"GET /health HTTP/1.1\r\n" + b"a: %s\r\n\r\n" % (b"b" * 70000), b"431"),
        (b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 14000 + b"\r\n", b"431"),
        (POST.replace(b"host", b"a: %s\r\nhost" % (b"b" * 70000)) + BODY, b"431"),
    ):
        with server.connect() as connection:
            connection.sendall(sent)
            assert read_all(connection).split(b" ")[1] == status
    assert healthy(server)


def test_a_body_too_large_is_refused_before_it_is_sent(server):
    head = POST.replace(b"content-length: %d" % len(BODY), b"content-length: 99999999999")
    with server.connect() as connection:
        connection.sendall(head)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 413") and b"connection: close" in answer.lower()


def test_an_endless_body_in_chunks_is_cut_off(server):
    head = POST.replace(b"content-length: %d" % len(BODY), b"transfer-encoding: chunked")
    with server.connect() as connection:
        connection.sendall(head)
        sent = 0
        try:
            while sent < 50_000_000:
                sent += connection.send(b"1000\r\n" + b" " * 4096 + b"\r\n")
        except OSError:
            pass
        assert sent < 50_000_000, "the server took an endless body"
    assert healthy(server)


def test_a_client_that_never_reads_is_cut_off():
    labels = " ".join("label-%04d" % index for index in range(2000))
    with ServerProcess.known(options={"receive_timeout_s": 0.5}, labels_file=_written(labels)) as server:
        body = json.dumps({"inputs": [["abc"]] * 250}).encode()
        head = POST.replace(b"content-length: %d" % len(BODY), b"content-length: %d" % len(body))
        with server.connect() as connection:
            connection.setsockopt(1, 8, 4096)  # SOL_SOCKET, SO_RCVBUF: a small window
            connection.sendall(head + body)  # the answer has about 20 MB
            assert until(lambda: server.metric("ftbert_connections") == 1, 20), "the stalled connection stays"
        assert server.stop() == 0


def test_many_idle_connections_hold_nobody_up():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = int(os.environ.get("FTBERT_TEST_IDLE_CONNECTIONS", "2000"))
    if hard != resource.RLIM_INFINITY and hard < count + 200:
        pytest.skip("the process may open only %d files" % hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 200), hard))
    try:
        with ServerProcess.known(options={"receive_timeout_s": 4.0, "keep_alive_s": 4.0}) as server:
            assert healthy(server)
            files, memory = server.open_files(), server.resident_bytes()
            connections = [server.connect() for _ in range(count)]
            assert healthy(server)
            assert server.open_files() > files + count // 2, "the answer came when the idle connections were gone"
            for connection in connections:
                connection.settimeout(WAIT)
                assert connection.recv(1) == b""  # closed by the server
                connection.close()
            assert until(lambda: server.open_files() <= files + 2), "closed connections stay open files"
            assert healthy(server)
            assert server.resident_bytes() - memory < 20000 * count + 20_000_000
            assert server.stop() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_connections_past_the_limit_are_told_so():
    with ServerProcess.known(options={"max_connections": 3}) as server:
        held = [server.connect() for _ in range(3)]
        assert until(lambda: server.open_files() > 0)
        with server.connect() as connection:
            answer = read_all(connection)
            assert answer.startswith(b"HTTP/1.1 503") and b"retry-after" in answer
        for connection in held:
            connection.close()
        assert until(lambda: _answers(server))
        assert server.stop() == 0


def test_clients_that_hang_up_leave_no_work_behind():
    with ServerProcess.known(delay=0.4, options={"batch_tokens": 5}) as server:
        for _ in range(30):
            with server.connect() as connection:
                connection.sendall(POST + BODY)
                time.sleep(0.005)
        assert healthy(server)
        assert server.metric("ftbert_batch_texts_count") < 15, "the work of 30 vanished clients was done first"
        assert until(lambda: server.metric("ftbert_disconnects_total") >= 25)
        assert server.metric("ftbert_queue_texts") == 0
        assert server.stop() == 0


def test_sigterm_answers_what_is_under_way_and_exits_0():
    with ServerProcess.known(delay=0.5, options={"batch_tokens": 5}) as server:
        answers = []
        callers = [threading.Thread(target=lambda: answers.append(server.predict("abc"))) for _ in range(4)]
        for caller in callers:
            caller.start()
        idle = server.connect()
        assert until(lambda: server.metric("ftbert_queue_texts") >= 2)
        server.process.send_signal(signal.SIGTERM)
        for caller in callers:
            caller.join(WAIT)
        assert [status for status, _ in answers] == [200] * 4
        assert server.process.wait(WAIT) == 0, server.log
        with pytest.raises(OSError):
            server.connect(timeout=2)
        idle.close()


def test_sigterm_does_not_wait_longer_than_told():
    with ServerProcess.known(delay=3 * WAIT, options={"drain_s": 1}) as server:
        connection = server.connect()
        connection.sendall(POST + BODY)
        assert until(lambda: server.metric("ftbert_texts_total") == 2)  # the warm-up text and this one
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
        connection.close()


def test_sighup_reloads_without_a_failed_request(tmp_path):
    labels = tmp_path / "labels"
    labels.write_text("old1 old2")
    with ServerProcess.known(labels_file=str(labels), delay=0.002) as server:
        seen, failed, stop = set(), [], threading.Event()

        def call():
            while not stop.is_set():
                status, answer = server.predict("abc")
                if status != 200:
                    failed.append(answer)
                else:
                    seen.add(answer[0]["label"][:3])

        callers = [threading.Thread(target=call) for _ in range(4)]
        for caller in callers:
            caller.start()
        for round_ in range(3):
            labels.write_text("r%d1 r%d2" % (round_, round_))
            server.process.send_signal(signal.SIGHUP)
            assert until(lambda round_=round_: any(label.startswith("r%d" % round_) for label in set(seen)))
        labels.unlink()  # this reload fails; the last model goes on
        server.process.send_signal(signal.SIGHUP)
        assert until(lambda: "not reloaded" in server.log)
        stop.set()
        for caller in callers:
            caller.join(WAIT)
        assert not failed and "old" in seen
        assert healthy_status(server) == 200
        assert server.stop() == 0


def test_no_text_reaches_the_log_unless_asked():
    bodies = [
        b'{"inputs": "marker-text"}',
        b'{"inputs": "marker-text"',
        b'{"inputs": ["marker-text", 1]}',
        b'{"marker-text": 1}',
    ]
    for options, shown in (
        ({}, False),
        ({"log_requests": True}, False),
        ({"log_requests": True, "log_texts": True}, True),
    ):
        with ServerProcess.known(options=options) as server:
            for body in bodies:
                server.request("POST", "/predict", body)
            assert server.stop() == 0
            server._reader.join(WAIT)
            assert ("marker-text" in server.log) == shown
            assert ("POST /predict 200" in server.log) == ("log_requests" in options)


def certificate_in(folder, *more):
    """(certificate, key) for 127.0.0.1, made by openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, certificate = str(folder / "key.pem"), str(folder / "cert.pem")
    command = "openssl req -x509 -newkey rsa:2048 -days 1 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    command = command.split() + ["-keyout", key, "-out", certificate] + list(more or ["-nodes"])
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return certificate, key


def test_tls(tmp_path):
    certificate, key = certificate_in(tmp_path)
    with ServerProcess.known(options={"ssl_certfile": certificate, "ssl_keyfile": key}) as server:
        context = ssl.create_default_context(cafile=certificate)
        with urllib.request.urlopen(
            "https://127.0.0.1:%d/ready" % server.port, context=context, timeout=WAIT
        ) as response:
            assert response.status == 200
        assert server.stop() == 0


def test_certificates_that_cannot_be_used_are_an_error_before_anything_is_loaded(tmp_path):
    certificate, key = certificate_in(tmp_path)
    (tmp_path / "locked").mkdir()
    locked, locked_key = certificate_in(tmp_path / "locked", "-passout", "pass:secret")
    for settings in (
        {"ssl_certfile": key, "ssl_keyfile": certificate},
        {"ssl_certfile": certificate},
        {"ssl_certfile": locked, "ssl_keyfile": key},
        {"ssl_certfile": locked, "ssl_keyfile": locked_key},
        {"ssl_certfile": locked, "ssl_keyfile": locked_key, "ssl_keyfile_password": "wrong"},
        {"ssl_certfile": certificate, "ssl_keyfile": key, "ssl_ca_certs": __file__},
    ):
        with pytest.raises(ConfigError, match="certificate and its key"):
            run({"a": "/nowhere/at/all"}, port=0, **settings)
    with pytest.raises(CheckpointError):
        run({"a": "/nowhere"}, port=0, ssl_certfile=locked, ssl_keyfile=locked_key, ssl_keyfile_password="secret")


@pytest.mark.skipif(not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6"), reason="no IPv6 here")
def test_an_address_of_ipv6_is_written_as_urls_have_it():
    with ServerProcess.known(options={"host": "::1"}) as server:
        assert "http://[::1]:%d" % server.port in server.log
        assert server.predict("abc")[0] == 200
        assert server.stop() == 0


def test_a_model_that_is_not_there_is_an_error_before_anything_listens():
    with pytest.raises(CheckpointError):
        run({"a": "/nowhere/at/all"}, port=0)


def healthy_status(server):
    return server.predict("abc")[0]


def _answers(server):
    try:
        return healthy_status(server) == 200
    except OSError:
        return False


def _written(text):
    import tempfile

    with tempfile.NamedTemporaryFile("w", delete=False, suffix=".labels") as file:
        file.write(text)
    return file.name


def test_the_known_answers_come_through_the_process(server):
    known = KnownPredictor()
    status, answer = server.predict("我要退款", raw_scores=True)
    scores = {item["label"]: item["score"] for item in answer}
    assert status == 200
    assert [scores[label] for label in known.labels] == known.expect(["我要退款"])[0].tolist()


def test_a_port_that_is_taken_is_an_error_and_not_a_hang():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        command = [sys.executable, os.path.join(TESTS, "serving_child.py")]
        command.append(json.dumps({"options": {"port": taken.getsockname()[1]}}))
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join([os.path.dirname(TESTS), TESTS]))
        result = subprocess.run(command, stderr=subprocess.PIPE, env=environment, universal_newlines=True, timeout=WAIT)
    assert result.returncode == 1
    assert "UnavailableError: Expected to listen on 127.0.0.1" in result.stderr


def test_an_answer_that_takes_too_long_is_a_504():
    with ServerProcess.known(delay=1.0, options={"timeout_s": 0.2}) as server:
        status, answer = server.predict("abc")
        assert (status, answer["error_type"]) == (504, "Timeout")
        assert server.stop() == 0
