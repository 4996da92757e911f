# SPDX-License-Identifier: Apache-2.0
"""Requests that no page and no client would send, to a real server: each gets a sentence, the log no stack trace."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.waiting import files_below, until
from tests.webui.http.server import JSON, Server


FORM = {"Content-Type": "multipart/form-data; boundary=xx"}
SESSION = "abc123"
FORGED = "/uploads/" + "a" * 64 + "/x.json"


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    limits = ("max_upload=200000", "upload_space=1000000", "max_new_tokens=512", "sessions=20")
    started = Server(tmp_path_factory.mktemp("served"), "-m", "tests.webui.http.served", "{port}", *limits)
    yield started
    started.stop()


@pytest.fixture(autouse=True)
def quiet(server) -> Iterator[None]:
    """Whatever a test sends: no stack trace, no flood, and the app still answers."""
    before, began = len(server.log), time.monotonic()
    yield
    new = server.log[before:]
    assert "Traceback" not in new and 'File "' not in new, new
    # Ten lines a minute are the most that each of four loggers writes.
    assert len(new.splitlines()) <= 40 * (1 + (time.monotonic() - began) / 60), new
    assert server.process.poll() is None


def file(path: object, **more: object) -> dict:
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


def deep(levels: int) -> bytes:
    return b'{"data": [' + b"[" * levels + b"]" * levels + b"]}"


# ---- what a program may leave out


def test_what_has_a_default_may_be_left_out(server):
    status, text = server.call("compare", {"data": ["hi"]})
    last = json.loads(re.findall(r"^data: (.+)$", text, re.MULTILINE)[-1])
    assert status == 200 and text.rstrip().splitlines()[-2] == "event: complete"
    assert last[0]["base"]["text"].startswith("Base says") and last[0]["slim"]["finish_reason"] == "end"
    # The same over every way in.
    _, queued = server.join({"data": ["hi"], "fn_index": number(server, "compare"), "session_hash": SESSION})
    assert '"success":true' in queued.split("process_completed")[1] and "Base says" in queued
    status, text = server.ask("POST", "/gradio_api/run/routing", {"data": ["hi"]})
    assert status == 200 and json.loads(text)["data"][0]["text"].startswith("SLIM says")
    assert server.call("v2/compare", {"prompt": "hi", "max_new_tokens": 3})[1].count("event: complete") == 1
    assert json.loads(server.ask("POST", "/gradio_api/run/models", {"data": []})[1])["data"][0]["base"]


def number(server: Server, name: str) -> int:
    """The number of a function, or of the first of the page's own."""
    functions = json.loads(server.ask("GET", "/config")[1])["dependencies"]
    return next(each["id"] for each in functions if each["api_name"] == name)


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("compare", [], "compare needs a value for prompt."),
        ("compare", ["hi", *[0] * 12], "compare takes at most 12 values; 13 were sent."),
        ("compare", [None], "The prompt must be text."),
        ("compare", [{"text": "hi"}], "The prompt must be text."),
        ("compare", ["hi", "", 0, 1, 0, 0, 1, 513], "Longest answer must be between 1 and 512; it is 513."),
        ("compare", ["hi", "", 0, 1, 0, 0, 1, 8, "abc"], "Stop texts must be a list of texts"),
        ("compare", ["hi", "", 0, 1, 0, 0, 1, 8, [["abc"]]], "A stop text must be text."),
        ("compare", ["hi", "", "0"], "Temperature must be a number."),
        ("compare", [file("/etc/passwd")], "There is no uploaded file '/etc/passwd'"),
        ("compare", ["hi", file("http://127.0.0.1:1/x")], "There is no uploaded file 'http://127.0.0.1:1/x'"),
        ("compare", ["hi", [{"a": file("../../x", url="http://127.0.0.1:1/")}]], "There is no uploaded file"),
        ("compare", [file(FORGED)], "There is no uploaded file"),
        ("compare", [file("/uploads/" + "a" * 64 + "/" + "x" * 5000)], "There is no uploaded file"),
        ("routing", ["hi", "nobody"], "There is no adapter 'nobody'"),
        ("routing", [], "routing needs a value for prompt."),
        ("models", [1], "models takes at most 0 values; 1 were sent."),
    ],
)
def test_values_that_cannot_be_are_sentences_in_the_event(server, name, data, sentence):
    status, text = server.call(name, {"data": data})
    assert status == 200 and "event: error" in text
    assert sentence in json.loads(re.findall(r"^data: (.+)$", text, re.MULTILINE)[-1])["error"]


def test_a_direct_call_is_refused_with_400_and_a_sentence(server):
    status, text = server.ask("POST", "/gradio_api/run/routing", {"data": [5]})
    assert (status, json.loads(text)["error"]) == (400, "The prompt must be text.")
    status, text = server.ask("POST", "/gradio_api/run/compare", {"data": ["hi"]})
    assert status == 400 and "POST to /gradio_api/call/compare" in json.loads(text)["error"]


# ---- what is refused before Gradio sees it


JOIN = "/gradio_api/queue/join"
CALL = "/gradio_api/call/compare"


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        (JOIN, {"data": [], "session_hash": SESSION, "fn_index": 99999}, 404, "There is no function 99,999 here"),
        (JOIN, {"data": [], "session_hash": SESSION, "fn_index": -1}, 404, "There is no function -1 here"),
        (JOIN, {"data": [], "session_hash": SESSION, "fn_index": "0"}, 400, '"fn_index" must be a whole number.'),
        (JOIN, {"data": [], "session_hash": SESSION, "fn_index": True}, 400, '"fn_index" must be a whole number.'),
        (JOIN, {"data": [], "session_hash": SESSION, "fn_index": 10**40}, 400, '"fn_index" must be a whole number.'),
        (JOIN, {"data": [], "session_hash": SESSION}, 400, 'The body must have "fn_index"'),
        (JOIN, {"data": [], "fn_index": 0}, 400, '"session_hash" must be a string'),
        (JOIN, {"data": [], "fn_index": 0, "session_hash": 5}, 400, '"session_hash" must be a string'),
        (JOIN, {"data": [], "fn_index": 0, "session_hash": "\ud800"}, 400, '"session_hash" must be a string'),
        (JOIN, {"data": [], "fn_index": 0, "session_hash": "x" * 100_000}, 400, '"session_hash" must be a string'),
        (JOIN, {"data": [], "fn_index": 0, "session_hash": "../../x"}, 400, '"session_hash" must be a string'),
        (JOIN, {"fn_index": 0, "session_hash": SESSION}, 400, 'The body must have "data"'),
        (JOIN, {"data": "hi", "fn_index": 0, "session_hash": SESSION}, 400, 'The body must have "data"'),
        (JOIN, {"data": {"0": 1}, "fn_index": 0, "session_hash": SESSION}, 400, 'The body must have "data"'),
        (JOIN, {"data": [0] * 1000, "fn_index": 0, "session_hash": SESSION}, 400, '"data" has 1,000 values'),
        (JOIN, {"data": [], "fn_index": 0, "session_hash": SESSION, "batched": True}, 400, '"batched" must be false'),
        (JOIN, {"data": [], "fn_index": 0, "session_hash": SESSION, "trigger_id": "x"}, 400, '"trigger_id" must be'),
        (JOIN, {"data": [], "fn_index": 0, "session_hash": SESSION, "event_id": {}}, 400, '"event_id" must be'),
        (JOIN, {"data": [], "fn_index": 0, "session_hash": SESSION, "oauth_token": 5}, 400, '"oauth_token" must be'),
        (JOIN, {}, 400, '"session_hash" must be a string'),
        (JOIN, [], 400, "The body must be a JSON object"),
        (JOIN, "text", 400, "The body must be a JSON object"),
        (CALL, {}, 400, 'The body must have "data"'),
        (CALL, {"data": None}, 400, 'The body must have "data"'),
        (CALL, {"data": ["hi"], "session_hash": {}}, 400, '"session_hash" must be a string'),
        ("/gradio_api/call/nothing", {"data": []}, 404, "There is no function 'nothing'; there are: compare, routing"),
        ("/gradio_api/run/nothing", {"data": []}, 404, "There is no function 'nothing'; there are: compare, routing"),
        ("/gradio_api/api/nothing/", {"data": []}, 404, "There is no function 'nothing'; there are: compare, routing"),
        ("/gradio_api/run/predict", {"data": [], "fn_index": 4242}, 404, "There is no function 4,242 here"),
        ("/gradio_api/call/v2/nothing", {}, 404, "There is no function 'nothing'; there are: compare, routing"),
        ("/gradio_api/call/v2/compare", {}, 400, 'compare needs "prompt".'),
        ("/gradio_api/call/v2/compare", {"prompt": "a", "x": 1}, 400, "compare has no parameter 'x'; it has: prompt,"),
        ("/gradio_api/cancel", {}, 400, '"session_hash" must be a string'),
        (
            "/gradio_api/cancel",
            {"session_hash": "a", "event_id": 5, "fn_index": 0},
            400,
            '"event_id" must be a string',
        ),
        ("/gradio_api/cancel", {"session_hash": "a", "event_id": "b"}, 400, '"fn_index" must be a whole number.'),
        ("/gradio_api/reset", {"event_id": []}, 400, '"event_id" must be a string'),
    ],
)
def test_forged_bodies(server, path, body, status, sentence):
    actual, text = server.ask("POST", path, body)
    assert actual == status and json.loads(text)["detail"].startswith(sentence)


@pytest.mark.parametrize(
    ("body", "headers", "status", "sentence"),
    [
        (b"", JSON, 400, "The body is not valid JSON"),
        (b"{", JSON, 400, "The body is not valid JSON"),
        (b"\xff\xfe", JSON, 400, "The body is not valid JSON"),
        (b'{"data": ["hi"]}', {}, 415, "Send JSON with the header Content-Type: application/json."),
        (b'{"data": ["hi"]}', {"Content-Type": "text/plain"}, 415, "Send JSON"),
        (b"data=hi", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "Send JSON"),
        (deep(40), JSON, 400, "The body nests lists and objects deeper than 32 levels."),
        (deep(200_000), JSON, 400, "The body nests lists and objects deeper than 32 levels."),
        (b'{"data": [' + b"9" * 10_000 + b"]}", JSON, 400, "The body is not valid JSON"),
        (b'{"data": ["' + b"x" * 17_000_000 + b'"]}', JSON, 413, "The request is larger than 16.0 MB"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bodies_that_are_no_request(server, body, headers, status, sentence):
    actual, text = server.ask("POST", CALL, body, headers)
    assert actual == status and json.loads(text)["detail"].startswith(sentence)


@pytest.mark.parametrize(
    ("method", "path", "statuses"),
    [
        ("GET", "/gradio_api/call/compare/nothing", {404}),
        ("GET", "/gradio_api/call/v2/compare/nothing", {404}),
        ("GET", "/gradio_api/queue/data?session_hash=%2e%2e", {400}),
        ("GET", "/gradio_api/queue/data?session_hash=" + "x" * 5000, {400}),
        ("GET", "/gradio_api/queue/data", {422}),
        ("GET", "/gradio_api/heartbeat/" + "x" * 5000, {400}),
        ("GET", "/gradio_api/heartbeat/%00", {400}),
        ("GET", "/gradio_api/upload_progress?upload_id=%00", {400}),
        ("GET", "/gradio_api/upload_progress", {422}),
        ("GET", "/gradio_api/file=/etc/passwd", {403}),
        ("GET", "/gradio_api/file=../../../../etc/passwd", {403, 404}),
        ("GET", "/gradio_api/file=" + FORGED, {404}),
        ("GET", "/gradio_api/file=/uploads/../../../../etc/passwd", {404}),
        ("GET", "/gradio_api/file=/uploads/" + "a" * 64 + "/..%2f..%2f..%2fetc%2fpasswd", {404}),
        ("GET", "/gradio_api/file=" + "x" * 9000, {403, 404}),
        ("GET", "/gradio_api/file=a%00b", {400, 403}),
        ("GET", "/gradio_api/file=http://127.0.0.1:1/x", {403}),
        ("GET", "/gradio_api/file=file:///etc/passwd", {403}),
        ("GET", "/gradio_api/file/../../etc/passwd", {403, 404}),
        ("GET", "/gradio_api/proxy=http://127.0.0.1:1/", {404}),
        ("GET", "/gradio_api/stream/a/b/1/playlist.m3u8", {404}),
        ("GET", "/gradio_api/custom_component/a/b/c/d", {404}),
        ("GET", "/gradio_api/run-history/buckets", {404}),
        ("GET", "/gradio_api/deep_link?session_hash=a", {404}),
        ("GET", "/gradio_api/dev/reload", {404}),
        ("GET", "/gradio_api/nothing", {404}),
        ("GET", "/static/../../../../etc/passwd", {400, 403, 404}),
        ("GET", "/static/%2e%2e/%2e%2e/etc/passwd", {400, 403, 404}),
        ("GET", "/assets/%00", {400, 403, 404}),
        ("GET", "/svelte/..%2f..%2fx", {400, 403, 404}),
        ("GET", "/pwa_icon/x", {404, 422}),
        ("GET", "/monitoring", {401, 403, 404}),
        ("DELETE", "/gradio_api/upload", {405}),
        ("PUT", CALL, {405}),
        ("POST", "/", {405}),
    ],
    ids=lambda value: str(value)[:60],
)
def test_addresses(server, method, path, statuses):
    status, text = server.ask(method, path)
    assert status in statuses and "root:" not in text


@pytest.mark.parametrize("path", ["component_server", "process_recording", "vibe-edit", "vibe-code", "stream/x"])
def test_routes_that_nobody_needs_are_closed(server, path):
    status, text = server.ask("POST", f"/gradio_api/{path}", {"data": None, "fn_name": "x", "component_id": 1})
    assert (status, json.loads(text)["detail"]) == (404, "There is nothing at this address.")


def test_a_session_that_is_unknown_is_told_in_the_stream(server):
    status, text = server.ask("GET", "/gradio_api/queue/data?session_hash=nobody")
    assert status == 200 and '"session_not_found":true' in text


@pytest.mark.nightly
def test_every_function_of_the_page_answers_nonsense(server):
    functions = json.loads(server.ask("GET", "/config")[1])["dependencies"]
    assert len(functions) > 20
    nonsense = (
        ([], {"x": [{}]}),
        ([None] * 40, {}),
        ([{"a": [1]}] * 40, {"column": {}, "index": "x", "value": []}),
        (["x"] * 40, "text"),
        ([file("/etc/passwd")] * 40, None),
        ([[5]] * 40, [[]]),
    )

    def answers(each):
        for data, event_data in nonsense:
            body = {"data": data, "fn_index": each["id"], "session_hash": f"s{each['id']}", "trigger_id": 10**6}
            status, text = server.join(body | {"event_data": event_data})
            assert status == 200, text
            done = [json.loads(line[6:]) for line in text.splitlines() if "process_completed" in line]
            assert done and all(each["success"] or each["output"]["error"] for each in done), text

    # Each has a session of its own, and most of an answer's time is a wait in Gradio's queue.
    with ThreadPoolExecutor(8) as several:
        list(several.map(answers, functions))


@pytest.mark.parametrize("name", ["X-Forwarded-Host", "X-Gradio-Server", "Host", "X-Forwarded-Proto"])
@pytest.mark.parametrize("value", ["x:y:z", "x:99999999", "a b", "[", "http://[", "%zz", "\xff"])
def test_headers_that_name_no_address(server, name, value):
    body = b'{"data": ["hi"], "session_hash": "headers"}'
    host = b"" if name == "Host" else b"Host: x\r\n"
    head = f"POST {CALL} HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    header = f"{name}: {value}\r\n".encode("latin-1")
    answer = server.raw(head.encode() + host + header + b"Connection: close\r\n\r\n" + body)
    if answer.startswith("HTTP/1.1 200 "):
        # What Gradio can make an address of is one.
        assert "event: complete" in server.ask("GET", f"{CALL}/{answer.split('event_id')[1][3:35]}")[1]
    else:
        assert answer.startswith("HTTP/1.1 400 ") and ("no address" in answer or "Invalid HTTP" in answer)
        assert name in ("X-Forwarded-Host", "X-Gradio-Server", "Host") and value != "%zz"


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"POST /gradio_api/call/compare HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/1.0\r\nOrigin: http://x\r\n\r\n",
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_http(server, data):
    with ThreadPoolExecutor(12) as several:
        answers = list(several.map(lambda _: server.raw(data, wait=1), range(12)))
    assert all(answer == "" or re.match(r"HTTP/1.1 4\d\d ", answer) for answer in answers), answers


def test_who_leaves_in_the_middle_leaves_nothing_behind(server):
    head = f"POST {CALL} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n"
    server.raw(head.encode() + b'{"data": [', leave=True)
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM['Content-Type']}\r\n"
    part = b'--xx\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n' + b"x" * 1000
    server.raw(f"{head}Content-Length: 90000\r\n\r\n".encode() + part, leave=True)
    until(lambda: not files_below(server.temporary))


# ---- uploads


def test_an_upload_is_told_without_where_it_is(server):
    status, text = server.upload(("../../../a b.json", b"{}"))
    (name,) = json.loads(text)
    assert status == 200 and re.fullmatch(r"/uploads/[0-9a-f]{64}/a b\.json", name)
    assert str(server.temporary) not in text
    # Under this name it can be read, and it is one that a call may name.
    response = server.ask("GET", "/gradio_api/file=" + name.replace(" ", "%20"))
    assert response == (200, "{}")
    _, text = server.call("compare", {"data": [file(name)]})
    assert "The prompt must be text." in text and str(server.temporary) not in text
    assert str(server.temporary) not in server.ask("GET", "/config")[1]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", {}, 400),
        (b"x", JSON, 400),
        (b"x", {"Content-Type": "multipart/form-data"}, 400),
        (b"x" * 100, FORM, 400),
        (b"--xx\r\n\r\nx\r\n--xx--\r\n", FORM, 400),
        (b'--xx\r\nContent-Disposition: form-data; name="files"\r\n\r\nx\r\n--xx--\r\n', FORM, 400),
        (b'--xx\r\nContent-Disposition: form-data; filename="files"\r\n\r\nx\r\n--xx--\r\n', FORM, 400),
        (b"--xx\r\n" + b"A: " + b"x" * 20_000 + b"\r\n\r\nx\r\n--xx--\r\n", FORM, 400),
        (b"--xx\r\nContent-Disposition: form-data; name=\xff; filename=\xff\x00\r\n\r\nx\r\n--xx--\r\n", FORM, 200),
        (b'--xx\r\nContent-Disposition: form-data; name="files"; filename=".."\r\n\r\nx\r\n--xx--\r\n', FORM, 400),
    ],
    ids=lambda value: str(value)[:60],
)
def test_malformed_uploads(server, body, headers, status):
    for query in ("", "?upload_id=u1"):
        actual, text = server.ask("POST", f"/gradio_api/upload{query}", body, headers)
        assert 400 <= actual < 500 or actual == status == 200, text
        assert str(server.temporary) not in text


def test_a_file_that_is_too_large(server):
    status, text = server.upload(("a", b"x" * 300_000))
    assert status == 413 and "200000 bytes" in text
    status, text = server.upload(*[(f"f{i}", b"x" * 190_000 + bytes([i])) for i in range(12)])
    assert status == 413 and json.loads(text)["detail"].startswith("The request has")


def test_an_upload_without_an_end(server):
    head = b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Type: "
    part = b'--xx\r\nContent-Disposition: form-data; name="text"\r\n\r\n'
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(head + FORM["Content-Type"].encode() + b"\r\n\r\n%x\r\n%s\r\n" % (len(part), part))
        sent = 0
        answer = b""
        try:
            while sent < 100_000_000:
                connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                sent += 65536
        except (BrokenPipeError, ConnectionResetError):
            pass
        try:
            answer = connection.recv(65536)
        except ConnectionResetError:
            answer = b"HTTP/1.1 413 "
    assert sent < 20_000_000 and answer.startswith((b"HTTP/1.1 413 ", b"HTTP/1.1 429 "))


def test_all_uploads_together_have_a_bound(server):
    statuses, text = [], ""
    for i in range(12):
        status, text = server.upload((f"{i}", bytes([i]) * 150_000))
        statuses.append(status)
    assert set(statuses) == {200, 429} and statuses[-1] == 429
    assert json.loads(text)["detail"].startswith("There is no space for more files now: 1.0 MB is all")
    kept = sum(path.stat().st_size for path in files_below(server.temporary))
    assert kept <= 1_000_000
    # Whoever brings no file is answered as before.
    assert "event: complete" in server.call("compare", {"data": ["hi"]})[1]
