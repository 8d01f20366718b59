"""Datasets on a real S3 server on this machine: pip install -r requirements-s3.txt runs these tests."""

import contextlib
import multiprocessing
import socket
import threading
import urllib.request

import numpy as np
import pytest
from raw_files import contents, run_maker, write_workload
from test_storage import SPLITS, read_all, recordings_in
from toy_eeg import write_toy

from dataset import storage
from dataset.hdf5 import open_file
from dataset.recordings import RecordingReader, find_datasets, open_dataset
from dataset_maker import make_Workload
from errors import UserError
from training.loading import Loader
from utils import start_run

s3fs = pytest.importorskip("s3fs", reason="optional: requirements-s3.txt")
ThreadedMotoServer = pytest.importorskip("moto.server", reason="optional: requirements-s3.txt").ThreadedMotoServer


class Cutter:
    """A port before a server, which ends the first `cuts` answers after so many bytes."""

    def __init__(self, port):
        self.server, self.cuts, self.after = port, 0, 5000
        self.listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            client = self.listener.accept()[0]
            try:
                server = socket.create_connection(("127.0.0.1", self.server))
            except OSError:  # it has been stopped
                client.close()
                continue
            threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, source, target, answer):
        passed = 0
        try:
            while data := source.recv(4096):
                passed += len(data)
                if answer and self.cuts and passed > self.after:
                    self.cuts -= 1
                    break
                target.sendall(data)
        except OSError:  # the other direction has ended
            return
        finally:
            for end in (source, target):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


def command(server, name, content=b""):
    """Tell the server something: "reset", or from which request on keys are looked at."""
    at = f"http://127.0.0.1:{server.port}/moto-api/{name}"
    urllib.request.urlopen(urllib.request.Request(at, content, {"Content-Type": "text/plain"})).read()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """An S3 server with the empty bucket `eeg`, behind a Cutter."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    server.port = server.get_host_and_port()[1]
    command(server, "reset")
    command(server, "reset-auth", b"inf")
    cutter = Cutter(server.port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{cutter.listener.getsockname()[1]}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("NEUROLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "WAITS", (0, 0, 0))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # of botocore, whose own attempts and s3fs's take two minutes
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 2)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("eeg")
    server.cutter = cutter
    yield server
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def toy(server, tmp_path):
    """The folder that s3://eeg/sets/Toy is a copy of."""
    folder = write_toy(tmp_path / "sets" / "Toy", splits=SPLITS, window=4)
    s3fs.S3FileSystem().put(f"{folder}/", "eeg/sets/Toy/", recursive=True)
    return folder


def test_a_maker_writes_and_a_run_reads(server, tmp_path):
    raw = write_workload(tmp_path / "raw")
    run_maker(make_Workload, "--raw_dir", raw, "--out_dir", tmp_path / "W", "--workers", 1)
    for shard in ("1/2", "0/2"):
        argv = ("--raw_dir", raw, "--out_dir", "s3://eeg/sets/W", "--workers", 2, "--shard", shard)
        run_maker(make_Workload, *argv)
    s3fs.S3FileSystem().get("eeg/sets/W/", f"{tmp_path}/back/", recursive=True)
    assert contents(tmp_path / "back", without="progress") == contents(tmp_path / "W", without="progress")
    ours, theirs = (open_dataset(find_datasets(place)[0], "train") for place in ("s3://eeg/sets", tmp_path / "W"))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(RecordingReader().read(one, 0, 900), RecordingReader().read(other, 0, 900))


class Reads:
    """Recordings as samples, read in the process that asks."""

    def __init__(self, recordings):
        self.recordings, self.reader = recordings, RecordingReader()

    def __len__(self):
        return len(self.recordings)

    def __getitem__(self, i):
        return i, float(self.reader.read(self.recordings[i], 0, 8000).sum())


def test_data_workers_read_what_their_parent_has_looked_at(toy):
    ours = open_dataset(find_datasets("s3://eeg/sets")[0], "train")
    theirs = Reads(open_dataset(toy, "train"))
    open_file(ours[0].path).close()  # the parent's connection is open when workers are forked
    loader = Loader(Reads(ours), 2, start_run("cpu"), list, num_workers=2)
    read = [pair for (batch,) in loader.epoch(0) for pair in batch]
    assert sorted(read) == [theirs[i] for i in range(6)]


def test_cut_connections(toy, server, tmp_path):
    recordings = open_dataset(find_datasets("s3://eeg/sets")[0], "train")
    server.cutter.cuts = 2
    open_file(recordings[0].path).close()
    assert server.cutter.cuts == 0
    assert recordings[0].path.read_bytes() == (toy / "train" / "train0.h5").read_bytes()
    server.stop()
    with pytest.raises(UserError, match=r"s3://eeg/sets/Toy/train/train1\.h5 cannot be read or written, tried 3 times"):
        open_file(recordings[1].path)
    assert recordings_in(tmp_path / "cache") == [recordings[0].path]


def test_wrong_keys(toy, server):
    command(server, "reset-auth", b"0")
    with pytest.raises(UserError, match="s3://eeg/sets: access denied .*check the keys"):
        find_datasets("s3://eeg/sets")


def test_a_bucket_that_is_not_there(server):
    with pytest.raises(UserError, match="dataset folder s3://other/sets does not exist"):
        find_datasets("s3://other/sets")


def test_two_processes_share_a_small_cache(toy, server, tmp_path, monkeypatch):
    size = (toy / "train" / "train0.h5").stat().st_size
    monkeypatch.setenv("NEUROLM_CACHE_GB", str(3 * size / 1e9))
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=read_all, args=("s3://eeg/sets", seed, results)) for seed in (0, 1)]
    for process in processes:
        process.start()
    found = [pair for _ in processes for pair in results.get(timeout=120)]
    theirs = Reads(open_dataset(toy, "train"))
    assert len(found) == 120 and set(found) <= {theirs[i] for i in range(6)}
    for process in processes:
        process.join()
    assert sum(path.stat().st_size for path in recordings_in(tmp_path / "cache")) <= 3 * size
