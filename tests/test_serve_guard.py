"""Who is answered: only pages of this server and programs of this machine, and never more than a body's limit."""

import http.client
import json
from collections.abc import Iterator

import pytest
from random_graphs import random_graph
from served_folder import Client, served

from circuits.serve.folder import GraphFolder
from circuits.serve.guard import Guard
from circuits.serve.site import Site


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    root = tmp_path_factory.mktemp("root")
    (root / "secret.json").write_text("what nobody may read")
    folder = GraphFolder(root / "graphs")
    random_graph().save(folder.root / "a.safetensors")
    with served(Site(folder)) as client:
        yield client


PATHS = ["/", "/graphs/a.safetensors/thumbnail.svg", "/compare", "/api", "/api/graphs", "/api/graphs/a.safetensors",
         "/api/graphs/a.safetensors/file", "/api/openapi.json", "/api/traces", "/static/serve.css", "/favicon.ico"]


@pytest.mark.parametrize("path", [*PATHS, "/nothing", "/api/nothing", "/api/graphs/absent.json"])
def test_every_answer_carries_the_headers(client: Client, path: str) -> None:
    for answer in (client.get(path), client.get(path, Host="evil.example"), client.ask("POST", path, "x" * 10)):
        headers = answer.headers
        assert headers["content-security-policy"].startswith("default-src 'none'; ")
        assert "unsafe" not in headers["content-security-policy"]
        assert "frame-ancestors" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cache-control"] == ("private, no-cache" if path.endswith(".svg") and answer.status == 200
                                            else "no-store")
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8010", "127.0.0.1.evil.example", "localhost.evil",
                                  "127.0.0.2", "0.0.0.0", "", "localhost:80:80", "user@localhost", "localhost,evil",
                                  "[::2]", "127.0.0.1/", "localhost."])
def test_foreign_hosts_are_refused(client: Client, host: str) -> None:
    for path in PATHS:
        answer = client.get(path, Host=host)
        assert answer.status == 421
        assert "only to its own address" in answer.detail


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:9000", "[::1]:8010", "localhost:22"])
def test_own_hosts_are_answered(client: Client, host: str) -> None:
    assert client.get("/api/graphs", Host=host).status == 200


def test_hosts_of_a_server_on_every_address_or_on_one() -> None:
    everywhere, one, six = (Guard(None, host) for host in ("0.0.0.0", "10.1.2.3", "fe80::1"))  # type: ignore[arg-type]
    assert [everywhere._is_ours(host) for host in ("10.1.2.3:8010", "[fe80::1]", "localhost", "evil.example", "1.2.3")
            ] == [True, True, True, False, False]
    assert [one._is_ours(host) for host in ("10.1.2.3:8010", "10.1.2.4", "localhost", "evil.example")
            ] == [True, False, True, False]
    assert six._is_ours("[FE80::1]:8010")


def test_several_hosts_are_refused(client: Client) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=10)
    connection.putrequest("GET", "/api/graphs", skip_host=True)
    connection.putheader("Host", "localhost")
    connection.putheader("Host", "evil.example")
    connection.endheaders()
    assert connection.getresponse().status in (400, 421)
    connection.close()


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1", "http://localhost:1",
                                    "file://", "", "http://127.0.0.1.evil.example"])
def test_other_origins_are_refused(client: Client, origin: str) -> None:
    for path in PATHS:
        answer = client.get(path, Origin=origin)
        assert (answer.status, answer.detail) == (403, "requests of other sites' pages are refused")
    assert client.send("POST", "/api/traces", {"prompt": "x"}, Origin=origin).status == 403
    assert client.ask("DELETE", "/api/graphs/a.safetensors", Origin=origin).status == 403
    assert client.ask("OPTIONS", "/api/graphs/a.safetensors", Origin=origin,
                      Access_Control_Request_Method="DELETE").status == 403
    assert client.get("/api/graphs/a.safetensors").status == 200


def test_the_own_origin_is_answered(client: Client) -> None:
    assert client.get("/api/graphs", Origin=client.origin, Sec_Fetch_Site="same-origin").status == 200
    assert client.get("/api/graphs", Origin="http://localhost:99", Host="localhost:99").status == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site", "something new"])
def test_requests_that_other_sites_make_are_refused(client: Client, site: str) -> None:
    """Another port of localhost is the same site and yet another's page."""
    for path in PATHS:
        assert client.get(path, Sec_Fetch_Site=site).status == 403
        assert client.get(path, Sec_Fetch_Site=site, Sec_Fetch_Mode="navigate", Sec_Fetch_Dest="iframe").status == 403
        visit = client.get(path, Sec_Fetch_Site=site, Sec_Fetch_Mode="navigate", Sec_Fetch_Dest="document").status
        assert visit == (403 if path.startswith("/api/") else 200)
    assert client.get("/api/graphs", Sec_Fetch_Site="none").status == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
                                  "", "application/jsonp", "text/plain, application/json"])
def test_what_changes_something_must_be_json(client: Client, kind: str) -> None:
    """A form of another site can send the other kinds without asking."""
    for method, path in (("POST", "/api/traces"), ("POST", "/api/graphs"), ("PUT", "/api/graphs/a.safetensors")):
        answer = client.ask(method, path, "{}", Content_Type=kind)
        assert (answer.status, answer.detail) == (415, "expected a body of Content-Type application/json")


def test_long_bodies_are_refused(client: Client) -> None:
    body = json.dumps({"prompt": "x" * 2**20})
    answer = client.ask("POST", "/api/traces", body, Content_Type="application/json")
    assert (answer.status, answer.detail) == (413, "the body is too long: at most 1 MiB are taken here")
    answer = client.ask("POST", "/api/graphs", b" " * (2**26 + 1), Content_Type="application/json")
    assert (answer.status, answer.detail) == (413, "the body is too long: at most 64 MiB are taken here")
    taken = client.ask("POST", "/api/graphs", " " * 2**21, Content_Type="application/json")  # whole, and then not JSON
    assert taken.status == 422
    answer = client.ask("POST", "/api/traces", "{}", Content_Type="application/json", Content_Length=str(10**15))
    assert (answer.status, answer.detail) == (413, "the body is too long: at most 1 MiB are taken here")
    for wrong in ("many", "-1", str(10**20)):  # no HTTP: answered at once, so a body sent then would find it closed
        answer = client.ask("POST", "/api/traces", Content_Type="application/json", Content_Length=wrong)
        assert answer.status in (400, 413)
    assert client.ask("POST", "/api/traces", b"x" * 2**22, Content_Type="text/plain").status == 415
    assert client.ask("POST", "/api/traces", b"x" * 2**22, Origin="http://evil.example").status == 403


def test_long_bodies_in_chunks_are_refused(client: Client) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=10)
    connection.request("POST", "/api/traces", iter([b"x" * 2**19] * 2 + [b"y"]), {"Content-Type": "application/json"},
                       encode_chunked=True)
    answer = connection.getresponse()
    assert answer.status == 413
    connection.close()


def test_the_server_reads_nothing_outside_of_its_folder(client: Client) -> None:
    secret = "/../secret.json"
    for start in ("/graphs", "/api/graphs", "/static"):
        for way in (secret, secret.replace("/", "%2f"), secret.replace(".", "%2e"), secret * 5, "/%00",
                    "/a.safetensors%00.json", "/..\\..\\x.json", "/%252e%252e%252fx.json", "/" + "a" * 5000 + ".json",
                    "//etc/passwd", "/a.safetensors/../../secret.json", "/%e2%80%ae.json", "/%ff.json"):
            for end in ("", "/file", "/thumbnail.svg"):
                answer = client.get(f"{start}{way}{end}")
                assert answer.status == 404, (start, way, end)
                assert b"nobody may read" not in answer.body
