"""Two nodes of two processes, each in a network of its own: one is killed and started again, and nothing is lost.

`docs/cluster.md` has the commands for doing it by hand.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import stages
import torch
from conftest import ROOT
from processes import run_processes
from test_distributed import shares

from model.weights import read_checkpoint
from utils import start_run

NODES = {"node0": "10.87.0.1", "node1": "10.87.0.2"}
RENDEZVOUS = "--nnodes=2 --nproc_per_node=2 --rdzv_backend=c10d --rdzv_endpoint=node0:29500 --rdzv_id=neurolm"


@pytest.fixture
def nodes():
    """Two network namespaces with one cable between them, which know each other by name; their prefix."""
    if os.geteuid() or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("needs root, and ip and unshare of Linux")
    prefix = f"neurolm{os.getpid()}"
    with ExitStack() as made:
        for name in NODES:
            tried = subprocess.run(["ip", "netns", "add", prefix + name], capture_output=True, text=True)
            if tried.returncode:
                pytest.skip(f"no network namespaces here: {tried.stderr.strip()}")
            made.callback(subprocess.run, ["ip", "netns", "del", prefix + name], check=True)
            hosts = Path("/etc/netns", prefix + name, "hosts")  # what a process there sees as /etc/hosts
            hosts.parent.mkdir(parents=True)
            made.callback(shutil.rmtree, hosts.parent)
            hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{ip} {node}\n" for node, ip in NODES.items()))
        first, second = (prefix + name for name in NODES)
        cable = f"ip link add net0 netns {first} type veth peer name net0 netns {second}"
        tried = subprocess.run(cable.split(), capture_output=True, text=True)
        if tried.returncode:
            pytest.skip(f"no veth here: {tried.stderr.strip()}")
        for name, ip in NODES.items():
            for command in (f"addr add {ip}/24 dev net0", "link set net0 up", "link set lo up"):
                subprocess.run(["ip", "-n", prefix + name, *command.split()], check=True)
        made.callback(kill, prefix, *NODES)
        yield prefix


def start(prefix, name, log, command) -> subprocess.Popen:
    """A command on a node, whose name is the host's there."""
    place = ["ip", "netns", "exec", prefix + name, "unshare", "--uts", "sh", "-c", f'hostname {name}; exec "$@"', "sh"]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "net0", "OMP_NUM_THREADS": "1"}
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # else torchrun tells no address to a node that comes later
    with open(log, "ab") as out:
        return subprocess.Popen([*place, *command], cwd=ROOT, env=environment, stdout=out, stderr=out)


def kill(prefix, *names) -> None:
    """All processes of these nodes at once, with SIGKILL."""
    for name in names:
        for process in subprocess.check_output(["ip", "netns", "pids", prefix + name], text=True).split():
            os.kill(int(process), signal.SIGKILL)


@pytest.mark.slow
def test_a_node_that_is_killed_comes_back(nodes, tmp_path):
    corpus = stages.write_corpus(tmp_path / "corpus")
    run_processes(4, stages.train, "vq", corpus, tmp_path / "undisturbed", *shares("vq", 4), "--epochs", 4)
    command = [sys.executable, "-m", "torch.distributed.run", *RENDEZVOUS.split(), "--max_restarts=3", "train_vq.py"]
    command += stages.flags("vq", corpus, tmp_path / "killed", *shares("vq", 4), "--epochs", 4, "--save_every_steps", 1)
    logs = {name: tmp_path / f"{name}.log" for name in NODES}
    torchruns = {name: start(nodes, name, log, command) for name, log in logs.items()}
    newest = Path("checkpoints", "VQ", "ckpt.pt")
    while not (tmp_path / "killed" / newest).exists() and all(each.poll() is None for each in torchruns.values()):
        time.sleep(0.1)
    kill(nodes, "node1")
    assert torchruns["node1"].wait() == -signal.SIGKILL
    torchruns["node1"] = start(nodes, "node1", logs["node1"], command)  # node0 starts its own processes anew
    status = [torchrun.wait(timeout=600) for torchrun in torchruns.values()]
    said = logs["node0"].read_text()
    assert status == [0, 0] and "resumed" in said, said[-5000:]
    killed, undisturbed = (read_checkpoint(tmp_path / run / newest) for run in ("killed", "undisturbed"))
    assert killed["iter_num"] == undisturbed["iter_num"] == 20
    # not bit for bit: DDP orders its sums anew after the first step of a process
    torch.testing.assert_close(killed["model"], undisturbed["model"], rtol=1e-5, atol=1e-6)


def meet():
    os.environ |= {"TORCHELASTIC_RESTART_COUNT": os.environ["RANK"], "TORCHELASTIC_USE_AGENT_STORE": "False"}
    assert start_run("cpu", "float32", timeout_minutes=0.1).sum_on_host(1.0) == 2.0


def test_processes_meet_whose_torchruns_count_other_attempts():
    """As on a node that came later: its first attempt is the second of the others."""
    run_processes(2, meet)
