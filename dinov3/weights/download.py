"""Plain downloads: a server that does not answer, stalls or breaks off is an error within seconds."""

import contextlib
import hashlib
import os
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO
from urllib.request import Request, urlopen

from huggingface_hub.utils import build_hf_headers, tqdm

ANSWER_SECONDS = 8  # to connect and answer; a proxy can take a while
STALL_SECONDS = 6  # without a byte
CHUNK_BYTES = 1 << 16


def require_answer(url: str) -> None:
    """Check that the hub sends the start of a file.

    Args:
        url: its address.

    Raises:
        OSError: it does not answer within seconds, has no such file, or breaks off.
        ValueError: this is no address.
    """
    request = Request(url, headers={"Range": f"bytes=0-{CHUNK_BYTES - 1}"})
    for name, value in build_hf_headers().items():  # the user's token among them, which is for the hub alone
        request.add_unredirected_header(name, value)
    with _open(request, ANSWER_SECONDS) as answer:
        promised = min(CHUNK_BYTES, int(answer.headers["Content-Length"] or 1))
        received = len(_read_chunk(answer))
    if received < promised:
        raise ConnectionError(f"the connection broke off after {received} of {promised} bytes")


def _open(request: Request, seconds: float) -> HTTPResponse:
    try:
        return urlopen(request, timeout=seconds)
    except HTTPException as error:  # the others are kinds of OSError
        raise ConnectionError(f"the answer is not HTTP ({type(error).__name__})") from error


def _read_chunk(answer: HTTPResponse) -> bytes:
    try:
        return answer.read(CHUNK_BYTES)
    except HTTPException as error:
        raise ConnectionError("the connection broke off") from error


def download(url: str, path: Path, sha256_start: str = "") -> None:
    """Download a file to a path, which is there only once the file is complete.

    Args:
        url: its address.
        path: where to write it; folders are made.
        sha256_start: the first digits of its hash, to check it against.

    Raises:
        OSError: there is no answer, the download stalls or breaks off, or it cannot be written.
        ValueError: this is no address, or the hash is another.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with _open(Request(url), STALL_SECONDS) as answer, partial.open("wb") as file:
            digest = _copy(answer, file, path.name)
        if not digest.startswith(sha256_start):
            raise ValueError(f"its hash starts with {digest[:8]}, expected {sha256_start}")
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _copy(answer: HTTPResponse, file: BinaryIO, name: str) -> str:
    """Copy the body of an answer to a file and return its hash."""
    length = answer.headers["Content-Length"]
    total = None if length is None else int(length)
    digest, done = hashlib.sha256(), 0
    with tqdm(desc=name, total=total, unit="B", unit_scale=True, disable=None) as progress:
        try:
            while chunk := _read_chunk(answer):
                file.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                progress.update(len(chunk))
        except TimeoutError as error:
            raise TimeoutError(f"nothing came for {STALL_SECONDS} s after {done} of {length} bytes") from error
        except ConnectionError as error:
            raise ConnectionError(f"the connection broke off after {done} of {length} bytes") from error
    if total is not None and done != total:
        raise ConnectionError(f"the connection broke off after {done} of {total} bytes")
    return digest.hexdigest()
