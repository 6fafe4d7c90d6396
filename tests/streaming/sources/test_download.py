"""The download against a server on loopback: whole, broken off, wrong, and not there."""

import hashlib
import io
import logging
import socket
import subprocess
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from streaming.sources import download
from streaming.sources.download import Archive, NoConnection, check, fetch


def packed(**files: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"KuaiRand-Pure/data/../{name}.csv")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


CONTENT = packed(log=bytes(range(256)) * 2000, users=b"user_id\n1\n", other=b"not wanted")


class Handler(BaseHTTPRequestHandler):
    """Serves `server.content` with Range; the first `server.cuts` answers break off in the middle."""

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        if self.server.status != 200:
            return self.send_error(self.server.status)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if start >= len(self.server.content):
            return self.send_error(416)
        body = self.server.content[start:]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.cuts > 0:
            self.server.cuts -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.content, running.cuts, running.asked, running.status = CONTENT, 0, [], 200
        thread = threading.Thread(target=running.serve_forever, args=(0.05,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def archive(server, md5: str = hashlib.md5(CONTENT).hexdigest(), members=("log.csv", "users.csv")) -> Archive:
    url = f"http://127.0.0.1:{server.server_port}/files/data.tar.gz"
    return Archive("set", url, md5, tuple(members), "CC BY-SA 4.0", "Gao et al.")


def test_fetched_once_and_only_what_is_wanted(server, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "download"):
        folder = fetch(archive(server), tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == ["SHA256SUMS", "log.csv", "users.csv"]
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    assert (folder / "log.csv").read_bytes() == bytes(range(256)) * 2000
    assert list(tmp_path.iterdir()) == [folder]
    assert "CC BY-SA 4.0" in caplog.text and "Gao et al." in caplog.text and "0 of 0 MB" in caplog.text
    assert fetch(archive(server), tmp_path) == folder and len(server.asked) == 1


def test_resumes_where_it_broke_off(server, tmp_path):
    server.cuts = 2
    for _ in range(2):
        with pytest.raises(NoConnection, match="broke off after"):
            fetch(archive(server), tmp_path)
    assert fetch(archive(server), tmp_path).is_dir()
    half = len(CONTENT) // 2
    rest = half + (len(CONTENT) - half) // 2
    assert server.asked == [None, f"bytes={half}-", f"bytes={rest}-"]


def test_killed_between_download_and_check(server, tmp_path):
    (tmp_path / "data.tar.gz.part").write_bytes(CONTENT)
    assert (fetch(archive(server), tmp_path) / "users.csv").read_bytes() == b"user_id\n1\n"


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    with pytest.raises(ValueError, match="expected is 0000"):
        fetch(archive(server, "0" * 32), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_changed_since_it_was_listed_is_named(tmp_path):
    whole, listed = tmp_path / "set" / "users.csv", tmp_path / "SHA256SUMS"
    whole.parent.mkdir()
    whole.write_bytes(b"user_id\n1\n")
    check([whole])  # nobody knows its sum
    listed.write_text(f"{hashlib.sha256(b'other').hexdigest()}  set/other.csv\n")
    check([whole])
    with listed.open("a") as file:
        file.write(f"{hashlib.sha256(whole.read_bytes()).hexdigest()} *./set/users.csv\n")
    check([whole])
    whole.write_bytes(b"user_id\n2\n")  # of the same size
    with pytest.raises(ValueError, match=f"{whole}: sha256 is .*, expected is .* by {listed}; .* again"):
        check([whole])


def test_a_missing_member_is_named(server, tmp_path):
    with pytest.raises(ValueError, match="lacks videos.csv"):
        fetch(archive(server, members=["log.csv", "videos.csv"]), tmp_path)
    assert not (tmp_path / "set").exists()


def test_no_connection_is_said_within_the_limit(server, tmp_path, monkeypatch):
    server.status = 503
    with pytest.raises(NoConnection, match="answers 503"):
        fetch(archive(server), tmp_path)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        refused = archive(server)._replace(url=f"http://127.0.0.1:{nobody.getsockname()[1]}/data.tar.gz")
        with pytest.raises(NoConnection, match="no connection within 10 s"):
            fetch(refused, tmp_path)
        nobody.listen()  # takes the connection and never answers
        monkeypatch.setattr(download, "CONNECT_S", 0.2)
        with pytest.raises(NoConnection, match="no connection within"):
            fetch(refused, tmp_path)


def test_the_cache_is_a_setting(monkeypatch, tmp_path):
    monkeypatch.setenv("MINUTEHAND_CACHE", str(tmp_path))
    assert download.cache() == tmp_path
    monkeypatch.delenv("MINUTEHAND_CACHE")
    assert download.cache().parts[-2:] == (".cache", "minutehand")
