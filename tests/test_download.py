"""Fetching public corpora, against a server on this machine that counts what it is asked for and can fail."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from raw_files import contents, run_maker, table

from dataset_maker import make_HMC, make_MotorImagery, make_Workload
from dataset_maker.machinery.download import SUMS, fetch
from dataset_maker.simulate import simulate
from errors import UserError


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.server.failures and self.path.endswith(self.server.failures[0]):
            self.server.failures.pop(0)
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(tmp_path):
    """serve(folder) -> its server and its URL, with sums of what the folder holds if it has none."""
    servers = []

    def start(folder):
        if not (folder / SUMS).exists():
            (folder / SUMS).write_text("".join(f"{digest} {name}\n" for name, digest in contents(folder).items()))
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
        server.asked, server.failures = [], []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server, f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_hmc_is_fetched_once_and_made(serve, tmp_path):
    simulate("HMC", tmp_path / "public", subjects=3, seconds=180)
    server, url = serve(tmp_path / "public")
    argv = ("--raw_dir", tmp_path / "raw", "--out_dir", tmp_path / "HMC", "--workers", 1, "--download", url)
    run_maker(make_HMC, *argv)
    assert sorted(server.asked) == sorted(
        [f"/{SUMS}", *(f"/recordings/SN00{n}{end}" for n in (1, 2, 3) for end in (".edf", "_sleepscoring.txt"))]
    )
    assert len(table(tmp_path / "HMC" / "manifest.csv")) == 3
    (tmp_path / "raw" / "recordings" / "SN002.edf").write_bytes(b"half a file")
    server.asked.clear()
    run_maker(make_HMC, *argv)
    assert server.asked == [f"/{SUMS}", "/recordings/SN002.edf"]
    assert contents(tmp_path / "raw" / "recordings", without="none").items() <= {
        path.removeprefix("recordings/"): digest for path, digest in contents(tmp_path / "public").items()
    }.items()


def test_only_the_runs_of_imagined_fists_are_fetched(serve, tmp_path):
    simulate("MotorImagery", tmp_path / "public", subjects=3, seconds=20)
    (tmp_path / "public" / "S001" / "S001R03.edf").write_bytes(b"a run of real movement")
    server, url = serve(tmp_path / "public")
    argv = ("--raw_dir", tmp_path / "raw", "--out_dir", tmp_path / "MI", "--workers", 1, "--download", url)
    run_maker(make_MotorImagery, *argv)
    files = [f"/S00{subject}/S00{subject}R{run}.edf" for subject in (1, 2, 3) for run in ("04", "08", "12")]
    assert sorted(server.asked) == sorted([f"/{SUMS}", *files])
    assert len(table(tmp_path / "MI" / "manifest.csv")) == 9


def test_another_corpus_than_the_published_one_is_refused(serve, tmp_path):
    simulate("Workload", tmp_path / "public", subjects=1)
    server, url = serve(tmp_path / "public")
    argv = ("--raw_dir", tmp_path / "raw", "--out_dir", tmp_path / "W", "--download", url)
    with pytest.raises(UserError, match="does not have the published checksums"):
        run_maker(make_Workload, *argv)
    assert server.asked == [f"/{SUMS}"]


def test_the_published_checksums_are_the_ones_known(shared, serve, tmp_path):
    folder = tmp_path / "public"
    folder.mkdir()
    for path in (shared / "data" / "eegmat").iterdir():
        (folder / path.name).symlink_to(path)
    _, url = serve(folder)
    fetch(url, tmp_path / "raw", make_Workload.RECORDINGS, make_Workload.CHECKSUMS)
    assert len(list((tmp_path / "raw").glob("*.edf"))) == 72


def test_failures_are_retried_and_then_named(serve, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "a.txt").write_text("a")
    (tmp_path / "public" / "b.txt").write_text("b")
    server, url = serve(tmp_path / "public")
    server.failures += ["b.txt"] * 2
    fetch(url, tmp_path / "raw", r"\w\.txt")
    assert server.asked.count("/b.txt") == 3 and (tmp_path / "raw" / "b.txt").read_text() == "b"
    (tmp_path / "public" / "a.txt").write_text("tampered")
    (tmp_path / "raw" / "a.txt").unlink()
    with pytest.raises(UserError, match=r"a\.txt.*does not match the known hash"):
        fetch(url, tmp_path / "raw", r"\w\.txt")
    assert not (tmp_path / "raw" / "a.txt").exists()
    with pytest.raises(UserError, match="names no file like x"):
        fetch(url, tmp_path / "raw", "x")
    with pytest.raises(UserError, match="cannot be fetched .404"):
        fetch(url + "nothing", tmp_path / "raw", r"\w\.txt")


@pytest.mark.parametrize("line", ["no sum", f"{'0' * 64}  ../../etc/x", f"{'0' * 64}  /etc/x"])
def test_sums_that_lead_elsewhere_are_refused(serve, tmp_path, line):
    (tmp_path / "public").mkdir()
    _, url = serve(tmp_path / "public")
    (tmp_path / "public" / SUMS).write_text(line + "\n")
    with pytest.raises(UserError, match="no checksum of a file"):
        fetch(url, tmp_path / "raw", ".*")
