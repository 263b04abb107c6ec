"""The server as others see it: Triton's client, a property-based tester of OpenAPI documents, a browser."""

import importlib.util
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

for package in ("tokenizers", "starlette", "uvicorn", "httptools", "orjson", "prometheus_client"):
    pytest.importorskip(package)

from serving_fakes import KnownPredictor  # noqa: E402
from serving_process import ServerProcess, until  # noqa: E402

TEXTS = ["abc", "我要退款", "x" * 40, ""]


@pytest.fixture(scope="module")
def server():
    with ServerProcess.known(options={"max_texts": 8, "max_characters": 400}) as made:
        yield made
        assert made.stop() == 0, made.log


# Triton's client


@pytest.fixture
def triton(server):
    http = pytest.importorskip("tritonclient.http")
    client = http.InferenceServerClient("127.0.0.1:%d" % server.port, connection_timeout=30, network_timeout=30)
    yield http, client
    client.close()


def test_tritonclient_sees_a_live_server(triton):
    _, client = triton
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("known") and client.is_model_ready("known", "1") and not client.is_model_ready("none")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    assert client.get_model_metadata("known")["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True])
def test_tritonclient_infers(triton, binary_in, binary_out):
    http, client = triton
    known = KnownPredictor()
    tensor = http.InferInput("text", [len(TEXTS)], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode() for text in TEXTS], np.object_), binary_data=binary_in)
    outputs = [
        http.InferRequestedOutput(name, binary_data=binary_out) for name in ("label", "scores", "logits", "truncated")
    ]
    result = client.infer("known", [tensor], outputs=outputs, request_id="42")
    logits = known.expect(TEXTS)
    assert result.get_response()["id"] == "42"
    np.testing.assert_array_equal(result.as_numpy("logits"), logits)
    np.testing.assert_allclose(result.as_numpy("scores").sum(axis=1), 1, rtol=1e-6)
    assert result.as_numpy("truncated").tolist() == [False, False, True, False]
    labels = [item.decode() if isinstance(item, bytes) else item for item in result.as_numpy("label")]
    assert labels == [known.labels[index] for index in logits.argmax(axis=1)]


def test_tritonclient_infers_with_the_protocols_defaults(triton):
    http, client = triton
    tensor = http.InferInput("text", [1, 2], "BYTES")
    tensor.set_data_from_numpy(np.array([[b"a", "我".encode()]], np.object_))
    result = client.infer("known", [tensor])
    np.testing.assert_array_equal(result.as_numpy("logits"), KnownPredictor().expect([("a", "我")]))


def test_tritonclient_is_told_what_is_wrong(triton):
    http, client = triton
    tensor = http.InferInput("text", [9], "BYTES")
    tensor.set_data_from_numpy(np.array([b"a"] * 9, np.object_))
    with pytest.raises(Exception, match="at most 8 texts"):
        client.infer("known", [tensor])


# schemathesis


@pytest.mark.timeout(240)
def test_schemathesis_finds_nothing(server, tmp_path):
    if importlib.util.find_spec("schemathesis") is None:
        pytest.skip("schemathesis is not installed")
    settings = os.path.join(os.path.dirname(os.path.abspath(__file__)), "schemathesis.toml")
    command = [os.path.join(os.path.dirname(sys.executable), "schemathesis"), "--config-file", settings, "run"]
    command += [server.url + "/openapi.json"]
    command += [
        "--max-examples",
        os.environ.get("FTBERT_TEST_SCHEMA_EXAMPLES", "15"),
        "--seed",
        "1",
        "--request-timeout",
        "30",
    ]
    result = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        timeout=220,
        cwd=str(tmp_path),
    )
    report = "\n".join(line for line in result.stdout.splitlines() if len(line) < 500)
    assert result.returncode == 0, report
    assert "ftbert" not in server.log.replace("ftbert.serving: Serving", ""), server.log
    assert server.predict("abc")[0] == 200


# A browser


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1000,900",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    from selenium.webdriver.chrome.service import Service

    made = webdriver.Chrome(options=options, service=Service(driver))
    made.set_page_load_timeout(30)
    yield made
    made.quit()


def by_id(browser, name):
    return browser.find_element("id", name)


def rows(browser):
    return [
        [cell.text for cell in row.find_elements("tag name", "td")]
        for row in browser.find_elements("css selector", "#answers tbody tr")
    ]


@pytest.mark.timeout(120)
def test_the_page_by_keyboard_in_both_languages(server, browser):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser.get(server.url)
    active = browser.switch_to.active_element
    assert active.get_attribute("id") == "texts", "the text field has the focus at once"
    active.send_keys("abc", Keys.ENTER, "我要退款", Keys.ENTER, "x" * 40)
    ActionChains(browser).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()
    assert until(lambda: len(rows(browser)) == 3)
    known = KnownPredictor()
    logits = known.expect(["abc", "我要退款", "x" * 40])
    for row, best, text in zip(rows(browser), logits.argmax(axis=1), ["abc", "我要退款", "x" * 40]):
        assert row[0] == text and row[1] == known.labels[best]
        assert len(row[2].splitlines()) == 3 and row[2].startswith(known.labels[best])
        assert "ms" in row[3]
    assert [row[4] for row in rows(browser)] == ["whole", "whole", "cut"]
    assert by_id(browser, "status").get_attribute("textContent") == "3 answers"

    # By Tab to the button, pressed with the space bar; the language chosen with its first letter's key.
    by_id(browser, "texts").send_keys(Keys.TAB)
    assert browser.switch_to.active_element.get_attribute("id") == "go"
    browser.switch_to.active_element.send_keys(Keys.SPACE)
    assert until(lambda: len(rows(browser)) == 3)
    ActionChains(browser).key_down(Keys.SHIFT).send_keys(Keys.TAB, Keys.TAB).key_up(Keys.SHIFT).perform()
    assert browser.switch_to.active_element.get_attribute("id") == "language"
    browser.switch_to.active_element.send_keys(Keys.DOWN)
    assert by_id(browser, "go").text == "预测"
    assert browser.find_element("tag name", "html").get_attribute("lang") == "zh"
    by_id(browser, "texts").clear()
    by_id(browser, "go").send_keys(Keys.ENTER)
    assert until(lambda: by_id(browser, "problem").text == "请至少输入一条文本。")
    by_id(browser, "texts").send_keys("x" * 401, Keys.TAB, Keys.ENTER)
    assert until(lambda: "at most 400 characters" in by_id(browser, "problem").text)
    loud = [
        entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE" and "413" not in entry["message"]
    ]
    assert not loud, loud


@pytest.mark.timeout(60)
def test_the_page_asks_for_the_token(browser):
    with ServerProcess.known(options={"token": "s3cret"}) as server:
        browser.get(server.url)
        assert until(lambda: by_id(browser, "token").is_displayed())
        by_id(browser, "texts").send_keys("abc")
        by_id(browser, "go").click()
        assert until(lambda: "token" in by_id(browser, "problem").text)
        by_id(browser, "token").send_keys("s3cret")
        by_id(browser, "go").click()
        assert until(lambda: len(rows(browser)) == 1)
        assert server.stop() == 0
