"""Servers killed again and again under clients that never stop: what they were told stays true.

NEMESIS_CYCLES says how many lives (40), NEMESIS_SEED which ones.
"""

import hashlib
import os
import subprocess
import time

import harness
import pytest
from history import History, violations
from nemesis import Client, Lives, Nemesis

CYCLES = int(os.environ.get("NEMESIS_CYCLES", "40"))
SEED = int(os.environ.get("NEMESIS_SEED", "1"))
CLIENTS = 4


@pytest.fixture(scope="module")
def kinds(pb):
    small = dict(prompt="a red circle moving left", **harness.SMALL)
    return {
        "short": dict(seed=1, num_inference_steps=2, formats=[pb.SAFETENSORS], **small),
        "video": dict(seed=2, num_inference_steps=5, formats=[pb.SAFETENSORS, pb.NPY], **small),
        "long": dict(seed=3, num_inference_steps=25, formats=[pb.SAFETENSORS], **small),
        "other": dict(seed=4, num_inference_steps=6, guidance_scale=1.0, formats=[pb.SAFETENSORS], **small),
    }


@pytest.fixture(scope="module")
def unbroken(pb, kinds):
    """Digests of each kind's results, from a server that lives."""
    results = {}
    with harness.Server() as server:
        for kind, fields in kinds.items():
            job = server.generation.SubmitJob(pb.GenerationRequest(**fields), timeout=30)
            assert server.wait_for_end(job.id).state == pb.SUCCEEDED
            results[kind] = {(pb.ArtifactFormat.Name(one), hashlib.sha256(server.fetch(job.id, one)).hexdigest())
                             for one in fields["formats"]}
    return results


@pytest.fixture
def small_disk(tmp_path):
    folder, size = tmp_path / "disk", 96 << 20
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
                             capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a disk that may be filled cannot be mounted here")
    yield folder, size
    subprocess.run(["umount", str(folder)], check=True)


def drive(state, kinds, cycles, seed, disk=None):
    """The log of that many lives and of a last one that is long enough, and what the nemesis did."""
    history = History()
    lives = Lives(state, history)
    nemesis = Nemesis(lives, seed, disk)
    clients = [Client(lives, f"{seed}.{number}", kinds, 1000 * seed + number) for number in range(CLIENTS)]
    lives.start()
    for client in clients:
        client.start()
    lives.end()
    for _ in range(cycles):
        nemesis.cycle()
    lives.start()
    for client in clients:
        client.leaving.set()
    for client in clients:
        client.join(timeout=200)
        assert not client.is_alive()
        if client.failure:
            raise client.failure
    page = clients[0].pb.ListJobsRequest(page_size=1000)
    listed = [job.id for job in lives.server.generation.ListJobs(page, timeout=30).jobs]
    lives.end()
    return history, nemesis.done, listed


def outcomes(history):
    """How many jobs ended how, as far as anybody saw."""
    ends = {}
    for events in history.jobs().values():
        last = max((e.view for e in events if e.view), key=lambda view: view.sequence, default=None)
        ends[last and last.state] = ends.get(last and last.state, 0) + 1
    return ends


def check(state, kinds, unbroken, cycles, seed, disk=None):
    began = time.monotonic()
    history, done, listed = drive(state, kinds, cycles, seed, disk)
    expected = {event.key: unbroken[event.key.split("/")[0]] for event in history.events if event.key}
    ends = outcomes(history)
    print(f"{cycles} lives in {time.monotonic() - began:.0f} s {done}: {len(history.events)} calls and events, "
          f"jobs {ends}")
    wrong = violations(history, expected)
    assert not wrong, "\n".join([*wrong, *history.stories(wrong)])
    assert len(listed) == len(set(listed))
    assert set(listed) <= {event.job for event in history.events}, "a job that nobody was told of"
    assert ends.get("SUCCEEDED", 0) >= cycles // 4, "too little came through to say anything"


def test_what_clients_were_told_stays_true_through_kills(tmp_path, kinds, unbroken):
    check(tmp_path / "state", kinds, unbroken, CYCLES - CYCLES // 4, SEED)


def test_and_on_a_disk_that_is_full_now_and_then(small_disk, kinds, unbroken):
    check(small_disk[0] / "state", kinds, unbroken, CYCLES // 4, SEED + 1, small_disk)
