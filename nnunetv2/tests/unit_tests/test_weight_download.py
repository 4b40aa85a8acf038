"""Downloads that do not answer, stall or break off: one sentence within seconds, nothing left behind."""

import hashlib
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants, file_download

from dinov3.hub.backbones import create_model
from dinov3.weights import download
from dinov3.weights.hub import download_hub_weights, download_url, require_hub_weights
from nnunetv2.model.backbone import find_pretrained_weights

CONTENT = bytes(range(256)) * 4096
PART = 30_000  # less than what is asked for before a download starts
REPOSITORY = "timm/vit_small_patch16_dinov3.lvd1689m"
RESET = struct.pack("ii", 1, 0)  # closing the connection then resets it


class Handler(BaseHTTPRequestHandler):
    """Answers as the folder in the address says."""

    def log_message(self, *arguments: object) -> None:
        """Write nothing."""

    def do_HEAD(self) -> None:
        """Promise the whole content."""
        self.send_response(404 if "absent" in self.path else 200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.send_header("ETag", '"1"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()

    def do_GET(self) -> None:
        """Give the content, or a part of it."""
        self.server.requests.append(self.path)
        if "silent" in self.path:
            self.server.is_over.wait()
        elif "garbage" in self.path:
            self.wfile.write(b"no answer\r\n\r\n")
        else:
            self.do_HEAD()
            self.wfile.write(CONTENT if "whole" in self.path else CONTENT[:PART])
        if "stall" in self.path:
            self.server.is_over.wait()
        if "reset" in self.path:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.connection.close()


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.is_over = [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.is_over.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, and limits of time that a test can wait for."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(download, "STALL_SECONDS", 0.4)
    monkeypatch.setattr(download, "ANSWER_SECONDS", 0.4)
    return tmp_path


def be_the_hub(server: ThreadingHTTPServer, behaviour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"http://127.0.0.1:{server.server_port}/{behaviour}/{{repo_id}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", address, raising=False)  # older releases


BROKEN = [
    ("close", "the connection broke off"),
    ("reset", "onnection"),
    ("stall", "0.4 s|timed out"),
    ("silent", "timed out"),
    ("garbage", "the answer is not HTTP"),
    ("absent", "HTTP Error 404"),
]


def test_the_limits_of_time_are_below_ten_seconds():
    assert max(download.ANSWER_SECONDS, download.STALL_SECONDS) < 10


@pytest.mark.parametrize(("behaviour", "told"), BROKEN)
def test_a_hub_that_breaks_off_is_told_with_the_remedy(server, caches: Path, monkeypatch, behaviour: str, told: str):
    be_the_hub(server, behaviour, monkeypatch)
    start = time.monotonic()
    with pytest.raises(ValueError, match="could not be downloaded") as caught:
        find_pretrained_weights("dinov3", "small")
    message = str(caught.value)
    assert time.monotonic() - start < 5 and len(server.requests) == 1  # not asked again
    assert REPOSITORY in message and re.search(told, message) and "set model.checkpoint_path to a local file" in message
    assert "\n" not in message and not [path for path in caches.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("behaviour", "told"), BROKEN)
def test_so_is_an_address(server, caches: Path, behaviour: str, told: str):
    with pytest.raises(ValueError, match="could not be downloaded") as caught:
        download_url(f"http://127.0.0.1:{server.server_port}/{behaviour}/weights.pth")
    assert re.search(told, str(caught.value))
    assert not [path for path in (caches / "torch").rglob("*") if path.is_file()]


def test_the_hub_module_names_its_own_remedy(server, caches: Path, monkeypatch):
    be_the_hub(server, "close", monkeypatch)
    with pytest.raises(ValueError, match=r"broke off .*: pass a file as weights, or pretrained=False"):
        create_model("dinov3_vits16", embed_dim=96, depth=1, num_heads=3)


def test_a_whole_download_is_kept(server, caches: Path, monkeypatch):
    be_the_hub(server, "whole", monkeypatch)
    path = download_hub_weights(REPOSITORY)
    assert path.read_bytes() == CONTENT and path.is_relative_to(caches / "hub")
    asked = len(server.requests)
    assert download_hub_weights(REPOSITORY) == path and len(server.requests) == asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    require_hub_weights(REPOSITORY)  # in the cache: no network is needed


def test_the_hash_in_a_name_is_checked(server, caches: Path):
    address = f"http://127.0.0.1:{server.server_port}/whole/weights-"
    digest = hashlib.sha256(CONTENT).hexdigest()[:8]
    assert download_url(f"{address}{digest}.pth", check_hash=True).read_bytes() == CONTENT
    with pytest.raises(ValueError, match=f"its hash starts with {digest}, expected 01234567"):
        download_url(f"{address}01234567.pth", check_hash=True)


def test_a_hub_that_does_not_answer_is_not_waited_for(server, caches: Path, monkeypatch):
    be_the_hub(server, "absent", monkeypatch)
    with pytest.raises(ValueError, match="HTTP Error 404"):
        require_hub_weights(REPOSITORY)
    assert len(server.requests) == 1
