"""What a cut of the power would leave: the real server's calls, in their order, as strace sees them.

A reply is sent after what it acknowledges is on disk; a file is whole under its name, and its name is on disk,
before the row that lists it is. What SQLite makes of its own calls: tests/runtime/store_power_test.cc."""

import re
import shutil
import signal
import subprocess

import harness
import pytest

SHAPES = harness.ROOT / "model_repository"
CALLS = "openat,mkdir,mkdirat,write,pwrite64,ftruncate,fsync,fdatasync,rename,renameat,renameat2,sendmsg,sendto,writev"


# -D: the server is the child, and gets the signals.
STRACE = ("strace", "-D", "-f", "--seccomp-bpf", "-y", "-s", "100000", "-e", f"trace={CALLS}")


def why_no_strace(folder):
    if shutil.which("strace") is None:
        return "strace is not installed"
    probe = folder / "probe"
    tried = subprocess.Popen([*STRACE, "-o", str(probe), "true"], stderr=subprocess.PIPE, text=True)
    said = tried.communicate()[1]
    try:
        harness.eventually(lambda: probe.exists() and exited(probe, tried.pid), what="the end of a trace")
    except AssertionError:
        return f"strace may not trace here: {said.strip()}"
    return None if "openat(" in probe.read_text(errors="replace") else "strace sees no calls here"


def exited(trace, pid):
    """The line that says so is there; the pid is padded in it."""
    with trace.open("rb") as lines:
        lines.seek(max(0, trace.stat().st_size - 1000))
        return re.search(rf"^{pid} +\+\+\+ exited with 0 \+\+\+$".encode(), lines.read(), re.MULTILINE) is not None


@pytest.fixture(autouse=True, scope="module")
def traced(tmp_path_factory):
    why = why_no_strace(tmp_path_factory.mktemp("probe"))
    if why:
        pytest.skip(why)


class Call:
    """`began` and `ended` are places in the order of all calls' beginnings and ends."""

    def __init__(self, name, text, began):
        self.name, self.text, self.began, self.ended = name, text, began, None

    def __repr__(self):
        return f"{self.began}-{self.ended} {self.name}({self.text[:200]}"

    def of(self, path):
        """Of the file or folder `path` by its descriptor."""
        return re.match(r"\d+<" + re.escape(str(path)) + r">", self.text) is not None


def calls_in(trace):
    """All that succeeded, in the order in which they began."""
    calls, under_way = [], {}
    for place, line in enumerate(trace.read_text(errors="replace").splitlines()):
        thread, _, what = line.partition(" ")
        what = what.strip()
        resumed = re.match(r"<\.\.\. (\w+) resumed>(.*)", what)
        if resumed:
            call = under_way.pop(thread, None)
            assert call is not None, f"line {place} ends a call that did not begin: {line[:200]}"
            call.text += resumed.group(2)
        else:
            begun = re.match(r"(\w+)\((.*)", what)
            if not begun:
                continue
            call = Call(begun.group(1), begun.group(2), place)
            calls.append(call)
            if call.text.endswith("<unfinished ...>"):
                under_way[thread] = call
                continue
        call.ended = place
    return [call for call in calls if call.ended is not None and not re.search(r"= -1 E\w+ \(", call.text[-200:])]


@pytest.fixture
def trace(tmp_path):
    return tmp_path / "trace"


def start(trace, state):
    strace = (*STRACE, "-o", str(trace))
    return harness.Server(f"--state_dir={state}", "--checkpoint_every=1", "--threads=1", repository=SHAPES,
                          wrapper=strace)


def stop(server, trace):
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=60) == 0
    harness.eventually(lambda: exited(trace, server.process.pid), what="the end of the trace")


def first(calls, what, matches, after=-1):
    """The first call that began after this place and matches."""
    for call in calls:
        if call.began > after and matches(call):
            return call
    raise AssertionError(f"{what}: there is none")


def committed(calls, state, text, after=-1):
    """The end of the transaction that writes `text` to the ledger: its sync, then the journal's."""
    ledger, journal = state / "jobs.sqlite", state / "jobs.sqlite-journal"
    written = first(calls, f"the row with {text}",
                    lambda c: c.name == "pwrite64" and c.of(ledger) and text in c.text, after)
    synced = first(calls, "its sync", lambda c: c.name in ("fsync", "fdatasync") and c.of(ledger), written.ended)
    done = first(calls, "the journal's end", lambda c: c.name == "ftruncate" and c.of(journal), synced.ended)
    kept = first(calls, "its sync", lambda c: c.name in ("fsync", "fdatasync") and c.of(journal), done.ended)
    return written, kept


def sends(call, text):
    return (call.name in ("sendmsg", "sendto", "writev", "write") and re.match(r"\d+<(socket|TCP|UNIX)", call.text)
            and text in call.text)


def request(pb, seed, steps=3):
    return pb.GenerationRequest(prompt="a red circle", seed=seed, num_inference_steps=steps,
                                formats=[pb.SAFETENSORS, pb.NPY])


def test_a_reply_is_sent_when_its_job_is_on_disk(pb, trace, tmp_path):
    state = tmp_path / "new" / "state"
    with start(trace, state) as server:
        ids = [server.generation.SubmitJob(request(pb, seed), timeout=60).id for seed in range(10)]
        for job_id in ids:
            assert server.wait_for_end(job_id).state == pb.SUCCEEDED
        stop(server, trace)
    calls = calls_in(trace)
    for job_id in ids:
        _, kept = committed(calls, state, job_id)
        told = first(calls, "the reply", lambda c: sends(c, job_id))
        assert kept.ended < told.began, job_id


def test_an_end_is_told_when_its_files_and_their_names_and_its_row_are_on_disk(pb, trace, tmp_path):
    state = tmp_path / "state"
    with start(trace, state) as server:
        job_id = server.generation.SubmitJob(request(pb, 1), timeout=60).id
        end = list(server.generation.WatchJob(pb.WatchJobRequest(job_id=job_id), timeout=60))[-1]
        assert end.state == pb.SUCCEEDED
        assert server.fetch(job_id, pb.NPY)
        stop(server, trace)
    calls = calls_in(trace)
    whole = max(named(calls, state / "artifacts", f"{job_id}.{ending}") for ending in ("safetensors", "npy"))
    written, kept = committed(calls, state, "SUCCEEDED")
    assert whole < written.began
    told = first(calls, "the end", lambda c: sends(c, end.receipt.fingerprint))
    assert kept.ended < told.began


def named(calls, folder, name):
    """Where the file is on disk under its name: its bytes first, then the name, then the folder."""
    part = first(calls, "the part file",
                 lambda c: c.name == "openat" and f'"{name}.part"' in c.text and "O_CREAT" in c.text)
    renamed = first(calls, f"the name {name}",
                    lambda c: c.name.startswith("rename") and f'"{name}"' in c.text, part.ended)
    its = [c for c in calls if c.of(folder / f"{name}.part") and part.ended < c.began < renamed.began]
    writes, syncs = [c for c in its if c.name == "write"], [c for c in its if c.name == "fsync"]
    assert writes and syncs and max(c.ended for c in writes) < syncs[-1].began, f"the bytes of {name}"
    assert syncs[-1].ended < renamed.began
    return first(calls, "the folder's sync", lambda c: c.name == "fsync" and c.of(folder), renamed.ended).ended


def test_checkpoints_are_whole_under_their_names_and_new_folders_have_theirs(pb, trace, tmp_path):
    state = tmp_path / "new" / "state"
    with start(trace, state) as server:
        job_id = server.generation.SubmitJob(request(pb, 1, steps=30), timeout=60).id
        harness.eventually((state / "checkpoints" / job_id).exists, timeout=60, what="a checkpoint")
        assert server.wait_for_end(job_id).state == pb.SUCCEEDED
        stop(server, trace)
    calls = calls_in(trace)
    named(calls, state / "checkpoints", job_id)
    _, kept = committed(calls, state, job_id)
    for folder in (tmp_path / "new", state, state / "artifacts", state / "checkpoints"):
        made = first(calls, f"the folder {folder}", lambda c: c.name.startswith("mkdir") and f'"{folder}"' in c.text)
        synced = first(calls, "the sync of its name", lambda c: c.name == "fsync" and c.of(folder.parent), made.ended)
        assert synced.ended < kept.began, folder
