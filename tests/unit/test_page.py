"""The page's files as HTTP answers; tests/browser looks at what they do."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from starlette.applications import Starlette
from starlette.routing import Route

from loadtest.servers import free_ports
from server import page
from server.control import ControlServer
from server.settings import Address
from server.supervisor import bind

FILES = [file for file in Path(page.__file__).parent.iterdir() if file.suffix in page._TYPES]
TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    app = Starlette(routes=[Route("/", page.index), *page.routes()])
    with bind(Address("127.0.0.1", free_ports(1)[0], "INFERENCE_ADDRESS")) as listener:
        server = ControlServer([(app, listener)])
        server.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.stop()


def get(url: str, **headers: str) -> requests.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.get(url, headers=names, timeout=10)


@pytest.mark.parametrize("name", ["", *(f"static/{file.name}" for file in FILES)])
def test_files_are_confined_and_validated(url: str, name: str) -> None:
    answer = get(f"{url}/{name}")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith(TYPES[Path(name or "index.html").suffix])
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    policy = answer.headers["Content-Security-Policy"].split("; ")
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert answer.headers["Cache-Control"] == "no-cache"
    again = get(f"{url}/{name}", If_None_Match=answer.headers["ETag"])
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["ETag"] == answer.headers["ETag"]
    other = get(f"{url}/{name}", If_None_Match='"other"')
    assert (other.status_code, other.content) == (200, answer.content)


@pytest.mark.parametrize("name", ["nothing.js", "__init__.py", "..%2fcontrol.py", "%00"])
def test_nothing_else_is_served(url: str, name: str) -> None:
    assert get(f"{url}/static/{name}").status_code == 404


def test_no_line_of_the_page_is_outside_the_policy() -> None:
    """Inline scripts, styles and handlers would be blocked; other hosts would not be asked."""
    html = (Path(page.__file__).parent / "index.html").read_text()
    assert not re.search(r"<style|<script(?![^>]*\bsrc=)|\sstyle=|\son[a-z]+=", html)
    for file in FILES:
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"(https?:)?//[a-z0-9-]+\.[a-z]", text), file.name


def test_every_module_is_loaded_at_once() -> None:
    """A module that is found only in another one costs a round trip more."""
    html = (Path(page.__file__).parent / "index.html").read_text()
    for file in FILES:
        if file.suffix != ".html":
            assert html.count(f'"/static/{file.name}"') == 1, file.name
