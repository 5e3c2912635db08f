"""Bodies of requests and answers: unpacked, read as text, scrubbed, packed again. What cannot be read is refused."""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib
import io
import re
import zipfile
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

from .scrub import UnreadableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .scrub import Scrubber

MOST_BYTES = 256 * 1024 * 1024  # an unpacked body; more is a bomb, or nothing that belongs into a recording

# Formats with a structure of their own that hold no credentials in a form that anyone reads them from.
BINARY_TYPES = re.compile(
    r"image/(?!svg).*|audio/.*|video/.*|font/.*|application/(?:zip|pdf|vnd\.apache\.(?:parquet|avro|arrow\.(?:file|stream))"
    r"|x-parquet|parquet|avro|x-avro|vnd\.openxmlformats.*|vnd\.ms-.*|java-archive|wasm|x-tar|x-7z-compressed|epub\+zip)"
    r"|avro/binary",
    re.IGNORECASE,
)
_SIGNATURES = (
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"GIF8",
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"PAR1",
    b"Obj\x01",
    b"%PDF",
    b"RIFF",
    b"ARROW1",
)
# Records of JSON text sequences (RFC 7464) and of SignalR begin or end with 1E.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c\x1d\x1f]")
_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe\x00\x00", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


class Packing(NamedTuple):
    """One way to compress."""

    unpack: Callable[[bytes], bytes]
    pack: Callable[[bytes], bytes]


def _unzlib(body: bytes, window: int = zlib.MAX_WBITS) -> bytes:
    unpacker = zlib.decompressobj(window)
    content = unpacker.decompress(body, MOST_BYTES)
    if unpacker.unconsumed_tail or not unpacker.eof or unpacker.unused_data:
        raise ValueError("cut off, or more than is read")
    return content


def _ungzip(body: bytes) -> bytes:
    content = gzip.GzipFile(fileobj=io.BytesIO(body)).read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError("more than is read")
    return content


def _deflate(content: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


def _library(*names: str) -> Any:
    """Return the first library that is installed; a program that gets such an answer has one that reads it."""
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise UnreadableError(f"a body is compressed and cannot be read: install {names[-1]}")


def _unbrotli(body: bytes) -> bytes:
    content: bytes = _library("brotlicffi", "brotli").decompress(body)
    return content


def _brotli(content: bytes) -> bytes:
    packed: bytes = _library("brotlicffi", "brotli").compress(content)
    return packed


def _unzstd(body: bytes) -> bytes:
    library = _library("compression.zstd", "backports.zstd", "zstandard")
    if hasattr(library, "ZstdDecompressor") and library.__name__ == "zstandard":
        content: bytes = library.ZstdDecompressor().decompressobj().decompress(body)
    else:
        content = library.decompress(body)
    return content


def _zstd(content: bytes) -> bytes:
    library = _library("compression.zstd", "backports.zstd", "zstandard")
    packed: bytes = (
        library.ZstdCompressor().compress(content) if library.__name__ == "zstandard" else library.compress(content)
    )
    return packed


PACKINGS = {
    "gzip": Packing(_ungzip, lambda content: gzip.compress(content, mtime=0)),
    "zlib": Packing(_unzlib, zlib.compress),
    "deflate": Packing(lambda body: _unzlib(body, -zlib.MAX_WBITS), _deflate),
    "br": Packing(_unbrotli, _brotli),
    "zstd": Packing(_unzstd, _zstd),
}
_MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"x\x01", "zlib"),
    (b"x\x9c", "zlib"),
    (b"x\xda", "zlib"),
    (b"x\x5e", "zlib"),
)


def unpacked(body: bytes, encoding: str = "") -> tuple[bytes, Packing] | None:
    """Return what is packed in a body and how, None if it is not packed.

    Args:
        body: Any bytes.
        encoding: The Content-Encoding of the body; without one the first bytes tell.
    """
    encoding = encoding.strip().lower().removeprefix("x-")
    names = [name for magic, name in _MAGIC if body.startswith(magic)]
    if encoding in PACKINGS:
        names = [encoding, *(["zlib"] if encoding == "deflate" else []), *names]
    for name in names:
        try:
            return PACKINGS[name].unpack(body), PACKINGS[name]
        except UnreadableError:
            raise
        except Exception:  # noqa: S112 - each library has errors of its own; all say that this is something else
            continue
    return None


def scrub_body(
    body: bytes, content_type: str, scrubber: Scrubber, *, encoding: str = "", allowed: bool = False
) -> bytes:
    """Return a body as it is written down.

    Args:
        body: As it was sent.
        content_type: Its Content-Type.
        scrubber: Decides about its values.
        encoding: Its Content-Encoding.
        allowed: The user keeps bodies of this type, even if they cannot be looked into.

    Raises:
        UnreadableError: It is neither text nor of a known binary type.
    """
    if not body:
        return body
    media, parameters = _media_type(content_type)
    if (inner := unpacked(body, encoding)) is not None:
        content, packing = inner
        changed = scrub_body(content, content_type, scrubber, allowed=allowed)
        return body if changed == content else packing.pack(changed)
    if media.startswith("multipart/") and "boundary" in parameters:
        return _scrub_multipart(body, parameters["boundary"], scrubber, allowed)
    text_and_codec = as_text(body, parameters.get("charset", ""), media)
    if text_and_codec is None:
        if allowed or is_known_binary(body, media):
            return body
        raise UnreadableError(f"a body of type {media or 'unknown'} is neither text nor of a known binary type")
    text, codec = text_and_codec
    is_form = media == "application/x-www-form-urlencoded" or re.fullmatch(
        r"[\w.%+$-]+=[^&;\s<>{}\"']*(?:&[\w.%+$-]+=[^&;\s<>{}\"']*)*", text
    )
    changed_text = (
        scrubber.form(text) if is_form and not text.lstrip().startswith(("{", "[", "<")) else scrubber.whole(text)
    )
    return body if changed_text == text else changed_text.encode(codec)


def _media_type(content_type: str) -> tuple[str, dict[str, str]]:
    media, *rest = content_type.split(";")
    pairs = (part.partition("=") for part in rest)
    return media.strip().lower(), {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs}


def is_known_binary(body: bytes, media: str) -> bool:
    """Return whether a body is of a binary format that may stay as it is."""
    return bool(BINARY_TYPES.fullmatch(media)) or body.startswith(_SIGNATURES)


def as_text(body: bytes, charset: str = "", media: str = "") -> tuple[str, str] | None:
    """Return a body as text, and the codec that it is written in; None if it is no text."""
    for bom, codec in _BOMS:
        if body.startswith(bom):
            codecs = ["utf-8" if codec == "utf-8" else codec]
            break
    else:
        codecs = ["utf-8", *([charset] if charset else ["latin-1"] if media.startswith("text/") else [])]
    for codec in codecs:
        try:
            text = body.decode(codec)
        except (UnicodeDecodeError, LookupError):
            continue
        if not _CONTROL.search(text):
            return text, codec
    return None


def _scrub_multipart(body: bytes, boundary: str, scrubber: Scrubber, allowed: bool) -> bytes:
    delimiter = b"--" + boundary.encode()
    parts = body.split(delimiter)
    for index, part in enumerate(parts[1:], start=1):
        if part.startswith(b"--") or not part.strip():
            continue
        line_end = b"\r\n" if b"\r\n" in part else b"\n"
        head, blank, content = part.partition(line_end * 2)
        ending = line_end if content.endswith(line_end) else b""
        headers = head.decode("latin-1")
        found = re.search(r"(?im)^content-type:\s*(.*?)\s*$", headers)
        name = re.search(r'(?i)\bname=(?:"([^"]*)"|([^\s";]+))', headers)
        content = content[: len(content) - len(ending)]
        named = (name[1] or name[2] or "") if name else ""
        scrubbed = _scrub_part(content, found[1] if found else "", named, scrubber, allowed)
        parts[index] = scrubber.text(headers).encode("latin-1") + blank + scrubbed + ending
    return delimiter.join(parts)


def _scrub_part(content: bytes, content_type: str, name: str, scrubber: Scrubber, allowed: bool) -> bytes:
    from .structure import Place

    if name and (text := as_text(content)) is not None:
        return scrubber.value(text[0], Place(name)).encode(text[1])
    if not content_type and as_text(content) is None and content:
        content_type = "application/octet-stream"
    return scrub_body(content, content_type, scrubber, allowed=allowed)


# Lengths and checksums


def headers_of_changed_body(headers: Mapping[str, list[str]], before: bytes, after: bytes) -> dict[str, list[str]]:
    """Return headers in which what was computed from the body is computed anew; what was wrong before stays wrong."""
    if before == after:
        return dict(headers)
    old, new = dict(_derived(before, headers)), dict(_derived(after, headers))
    again = {value: new[kind] for kind, value in old.items()}

    def change(name: str, value: str) -> str:
        if name.lower() == "content-length":
            return str(len(after)) if value == str(len(before)) else value
        if value in again:
            return again[value]
        algorithm, equals, digest = value.partition("=")
        return f"{algorithm}{equals}{again[digest]}" if equals and digest in again else value

    return {name: [change(name, value) for value in values] for name, values in headers.items()}


def _derived(body: bytes, headers: Mapping[str, list[str]]) -> Iterator[tuple[str, str]]:
    for algorithm in ("md5", "sha1", "sha256", "sha512"):
        digest = hashlib.new(algorithm, body, usedforsecurity=False).digest()
        yield f"{algorithm} base64", base64.b64encode(digest).decode()
        yield f"{algorithm} hex", digest.hex()
    if any("crc64" in name.lower() for name in headers):
        yield "crc64", base64.b64encode(crc64(body).to_bytes(8, "little")).decode()


def _crc64_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x9A6C9329AC4BC9B5 if byte & 1 else 0)  # noqa: PLW2901 - one register, shifted
        table.append(byte)
    return table


def crc64(body: bytes) -> int:
    """Return the CRC64 of Azure Storage, which is that of NVMe: of "123456789" it is ae8b14860a799888."""
    table, register = _crc64_table(), 0xFFFFFFFFFFFFFFFF
    for byte in body:
        register = table[(register ^ byte) & 0xFF] ^ (register >> 8)
    return register ^ 0xFFFFFFFFFFFFFFFF


def members_of_zip(body: bytes) -> Iterator[bytes]:
    """Yield what a ZIP archive holds, as far as it can be read."""
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            for info in archive.infolist():
                if not info.is_dir() and info.file_size <= MOST_BYTES:
                    yield archive.read(info)
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError):
        return
