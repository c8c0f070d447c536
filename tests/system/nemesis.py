"""Servers that are killed, stopped, starved of disk and started again, and clients that go on regardless
and write down what they are told (history.py)."""

import contextlib
import hashlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sqlite3
import tempfile
import threading
import time

import grpc
import harness
from history import View

# Few run at once, so that few are running at two kills, which would be their end.
FLAGS = ("--checkpoint_every=2", "--max_running_jobs=3", "--max_finished_jobs=100000",
         "--max_artifact_mib=100000", "--drain_grace=200ms")


class Lives:
    """One server after the other on one state folder."""

    def __init__(self, state, history):
        self.state, self.history = state, history
        self.life = 0
        self.changed = threading.Condition()
        self.server = None  # while there is one that answers

    def start(self):
        with self.changed:
            self.life += 1
        server = harness.Server(f"--state_dir={self.state}", *FLAGS)
        server.__enter__()
        self.check_folder()
        with self.changed:
            self.server = server
            self.changed.notify_all()

    def check_folder(self):
        left = [path.name for path in self.state.rglob("*.part")]
        # What is being written now has one too; what an earlier life left does not stay.
        harness.eventually(lambda: not any((path := next(self.state.rglob(name), None)) and path.exists()
                                           for name in left), what=f"the end of {left}")

    def current(self, timeout=60):
        """(life, server), waiting for one."""
        with self.changed:
            if not self.changed.wait_for(lambda: self.server is not None, timeout):
                raise AssertionError("no server has started")
            return self.life, self.server

    def end(self, number=signal.SIGKILL):
        with self.changed:
            server, self.server = self.server, None
        if number == signal.SIGKILL:
            self.history.note_kill()
        else:
            self.history.note_stop()
        server.process.send_signal(number)
        server.process.wait(timeout=30)
        server.__exit__()
        check_integrity(self.state)


def check_integrity(state):
    """Of a copy: who opens a ledger with a journal rolls it back."""
    with tempfile.TemporaryDirectory() as copy:
        for path in state.glob("jobs.sqlite*"):
            shutil.copy(path, copy)
        ledger = sqlite3.connect(os.path.join(copy, "jobs.sqlite"))
        with contextlib.closing(ledger):
            assert ledger.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert ledger.execute("SELECT count(*) FROM quarantine").fetchall() == [(0,)]


class Nemesis:
    """What a life comes to. `disk` is (folder, bytes) of a disk that may be filled."""

    def __init__(self, lives, seed, disk=None):
        self.lives, self.random, self.disk = lives, random.Random(seed), disk
        self.done = {}
        self.ways = [(8, self.kill), (2, self.kill_at_start), (1, self.freeze), (1, self.stop)]
        if disk:
            self.ways += [(4, self.fill), (2, self.start_full)]

    def cycle(self):
        """From no server to no server."""
        weights, ways = zip(*self.ways)
        way = self.random.choices(ways, weights)[0]
        self.done[way.__name__] = self.done.get(way.__name__, 0) + 1
        way()

    def live(self, most=1.0):
        time.sleep(self.random.uniform(0, most))

    def kill(self):
        self.lives.start()
        self.live()
        self.lives.end()

    def kill_at_start(self):
        """Before or after it has recovered, and before anybody could ask it."""
        command = [str(harness.BIN / "denoised"), f"--model_repository={harness.model_repository()}",
                   *(f"--{door}=127.0.0.1:0" for door in ("listen", "admin_listen", "http_listen")),
                   "--dtype=float32", "--threads=1", f"--state_dir={self.lives.state}", *FLAGS]
        with self.lives.changed:
            self.lives.life += 1
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                   env=harness.clean_environment())
        self.live(0.5)
        self.lives.history.note_kill()
        process.kill()
        process.wait()
        check_integrity(self.lives.state)

    def freeze(self):
        self.lives.start()
        self.live()
        self.lives.server.process.send_signal(signal.SIGSTOP)
        self.live(5)
        self.lives.server.process.send_signal(signal.SIGCONT)
        self.live()
        self.lives.end()

    def stop(self):
        """In order, and sometimes at once after all."""
        self.lives.start()
        self.live()
        if self.random.random() < 0.5:
            self.lives.server.process.send_signal(signal.SIGTERM)
        self.lives.end(signal.SIGTERM)

    @contextlib.contextmanager
    def full(self):
        folder, size = self.disk
        path, began = folder / "ballast", time.monotonic()
        with open(path, "wb", buffering=0) as ballast:
            with contextlib.suppress(OSError):
                for _ in range(0, size, 4096):  # to the last page
                    ballast.write(bytes(4096))
        try:
            yield
        finally:
            path.unlink()
            self.lives.history.full.append((began, time.monotonic()))

    def fill(self):
        """Then there is room again, or death comes first."""
        self.lives.start()
        self.live()
        with self.full():
            self.live()
            if self.random.random() < 0.5:
                self.lives.end()
        if self.lives.server:
            self.live()
            self.lives.end()

    def start_full(self):
        with self.full():
            self.lives.start()
            self.live()
        self.live()
        self.lives.end()


class Client(threading.Thread):
    """Sends what comes to its mind; knows only what it was told."""

    def __init__(self, lives, name, kinds, seed):
        super().__init__(daemon=True)
        self.pb = harness.stubs()
        self.lives, self.history, self.name = lives, lives.history, name
        self.kinds, self.random = kinds, random.Random(seed)
        self.keys = {}  # key -> job id; None until it was acknowledged
        self.numbers = itertools.count()
        self.open, self.over, self.aside = set(), [], set()
        self.leaving = threading.Event()
        self.failure = None
        self.channel = None, None

    def run(self):
        try:
            while not self.leaving.is_set():
                self.act()
            self.finish()
        except BaseException as error:  # told to the test by the one who joins
            self.failure = error

    def act(self):
        verbs = [(4, self.submit_again), (4, self.read), (4, self.watch), (2, self.list), (1, self.cancel),
                 (1, self.suspend), (2, self.fetch), (2, self.delete)]
        if len(self.open) + sum(job is None for job in self.keys.values()) < 4:
            verbs.append((16, self.submit))
        if self.aside:
            verbs.append((6, self.resume))
        weights, verbs = zip(*verbs)
        self.random.choices(verbs, weights)[0]()

    # ---- calls

    def call(self, verb, send, **fields):
        """The answer or None; written down either way. `send(stubs)` makes the call."""
        life, server = self.lives.current()
        event = self.history.begin(verb, life=life, **fields)
        try:
            answer = send(self.stubs_of(server))
            event.outcome = "ok"
            return event, answer
        except grpc.RpcError as error:
            event.reason = reason_of(error)
            event.outcome = "refused" if event.reason else "unknown"
            return event, None
        finally:
            event.ended = time.monotonic()
            if event.outcome == "unknown":
                time.sleep(0.01)

    def stubs_of(self, server):
        """A channel of its own, so that nobody closes it under a call."""
        address, stub = self.channel
        if address != server.public:
            if stub:
                stub.channel.close()
            channel = grpc.insecure_channel(server.public, harness.CHANNEL_OPTIONS)
            stub = self.pb.GenerationServiceStub(channel)
            stub.channel = channel
            self.channel = server.public, stub
        return stub

    def seen(self, event, job):
        event.view = view_of(self.pb, job)
        if event.view.state in ("SUCCEEDED", "FAILED", "CANCELLED"):
            if job.id in self.open:
                self.over.append(job.id)
            self.open.discard(job.id)
            self.aside.discard(job.id)

    # ---- verbs

    def send(self, key):
        fields = self.kinds[key.split("/")[0]]
        request = self.pb.GenerationRequest(idempotency_key=key, **fields)
        event, job = self.call("submit", lambda stubs: stubs.SubmitJob(request, timeout=20), key=key)
        if job is None:
            return
        event.job = job.id
        if self.keys[key] is None:
            self.keys[key] = job.id
            self.open.add(job.id)
        self.seen(event, job)

    def submit(self):
        key = f"{self.random.choice(list(self.kinds))}/{self.name}/{next(self.numbers)}"
        self.keys[key] = None
        self.send(key)

    def submit_again(self):
        """First what was not acknowledged."""
        unsure = [key for key, job in self.keys.items() if job is None]
        if unsure or self.keys:
            self.send(self.random.choice(unsure or list(self.keys)))

    def one(self, ids):
        return self.random.choice(sorted(ids)) if ids else None

    def about(self, verb, ids, method, request_type):
        """A unary call about one of these jobs; the job's id where it was answered with OK."""
        job_id = self.one(ids)
        if job_id is None:
            return None
        event, job = self.call(verb, lambda stubs: getattr(stubs, method)(request_type(job_id=job_id), timeout=20),
                               job=job_id)
        if isinstance(job, self.pb.Job):
            self.seen(event, job)
        return job_id if event.outcome == "ok" else None

    def read(self):
        self.about("get", self.open or self.over, "GetJob", self.pb.GetJobRequest)

    def cancel(self):
        self.about("cancel", self.open, "CancelJob", self.pb.CancelJobRequest)

    def suspend(self):
        job_id = self.about("suspend", self.open - self.aside, "SuspendJob", self.pb.SuspendJobRequest)
        if job_id in self.open:
            self.aside.add(job_id)

    def resume(self):
        self.aside.discard(self.about("resume", self.aside, "ResumeJob", self.pb.ResumeJobRequest))

    def delete(self):
        """Its key is free then, and is not used again."""
        job_id = self.one(self.over) if self.random.random() < 0.3 else None
        if job_id is None:
            return
        self.over.remove(job_id)
        self.keys = {key: job for key, job in self.keys.items() if job != job_id}
        self.call("delete", lambda stubs: stubs.DeleteJob(self.pb.DeleteJobRequest(job_id=job_id), timeout=20),
                  job=job_id)

    def watch(self, seconds=0.5):
        job_id = self.one(self.open)
        if job_id is None:
            return
        life, server = self.lives.current()
        stream = self.stubs_of(server).WatchJob(self.pb.WatchJobRequest(job_id=job_id), timeout=seconds)
        while True:
            event = self.history.begin("watch", life=life, job=job_id, pushed=True)
            try:
                self.seen(event, next(stream))
                event.outcome = "ok"
            except StopIteration:
                event.outcome = "ok"
                return
            except grpc.RpcError as error:
                event.reason = reason_of(error)
                event.outcome = "refused" if event.reason else "unknown"
                return
            finally:
                event.ended = time.monotonic()

    def list(self):
        life, server = self.lives.current()
        began = time.monotonic()
        try:
            reply = self.stubs_of(server).ListJobs(self.pb.ListJobsRequest(page_size=50), timeout=20)
        except grpc.RpcError:
            return
        for job in reply.jobs:
            event = self.history.begin("list", life=life, job=job.id)
            event.began, event.ended, event.outcome = began, time.monotonic(), "ok"
            event.view = view_of(self.pb, job)

    def fetch(self, ids=None):
        job_id = self.one(ids or self.over)
        if job_id is None:
            return
        for artifact in ("SAFETENSORS", "NPY"):
            request = self.pb.FetchArtifactRequest(job_id=job_id, format=getattr(self.pb, artifact))
            event, data = self.call("fetch", lambda stubs: b"".join(
                chunk.data for chunk in stubs.FetchArtifact(request, timeout=20)), job=job_id)
            if data is not None:
                event.digest = (artifact, hashlib.sha256(data).hexdigest())

    def finish(self):
        """In the last life: every job is acknowledged, resumed, and seen to its end; its results are read."""
        while unsure := [key for key, job in self.keys.items() if job is None]:
            self.send(unsure[0])
        for job_id in sorted(self.open):
            self.about("resume", {job_id}, "ResumeJob", self.pb.ResumeJobRequest)
        end = time.monotonic() + 120
        while self.open and time.monotonic() < end:
            self.watch(20)
        for job_id in self.over:
            self.about("get", {job_id}, "GetJob", self.pb.GetJobRequest)
            self.fetch({job_id})


def view_of(pb, job):
    digests = tuple(sorted((pb.ArtifactFormat.Name(a.format), a.sha256) for a in job.artifacts))
    return View(job.sequence, pb.JobState.Name(job.state), job.step, job.attempt, job.error.reason, digests)


def reason_of(error):
    """"" where the connection broke, or nobody knows what became of the call."""
    try:
        return harness.field_and_reason(error)[1]
    except (AttributeError, ValueError):
        return ""
