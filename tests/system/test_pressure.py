"""A server that runs short of memory refuses, says so and recovers, and is not killed."""

import contextlib
import os
import pathlib
import re

import grpc
import pytest

from harness import CHANNEL_OPTIONS, ROOT, Server, eventually, field_and_reason, memory, metric, page, stubs

SHAPES = ROOT / "model_repository/shapes"
# A long first job that alone may run, so that those behind it wait; nothing is remembered of ended ones.
WAITING = ("--max_running_jobs=1", "--max_queued_jobs=100000", "--max_finished_jobs=1")
ROOM_MIB = 256
PROMPT = "a red circle " * 5000  # 65,000 bytes, the most is 65,536


@pytest.fixture(scope="module")
def loaded():
    """What a server with its models takes."""
    with Server(repository=SHAPES) as server:
        return memory(server)


def limited(*flags, **options):
    return Server(*WAITING, *flags, repository=SHAPES, **options)


def begin(server):
    """A job that runs until the test's end."""
    job = server.submit(num_frames=33, num_inference_steps=1000)
    server.wait_until(job.id, lambda now: now.step > 0)
    return job.id


def fill(server, most=20000):
    """Submits large requests until one is refused; the ids of the others, and the refusal."""
    ids = []
    for _ in range(most):
        try:
            ids.append(server.submit(PROMPT).id)
        except grpc.RpcError as error:
            return ids, error
    raise AssertionError(f"{most} jobs were taken")


def cancel_all(server, ids):
    for one in ids:
        try:
            server.generation.CancelJob(stubs().CancelJobRequest(job_id=one), timeout=60)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.NOT_FOUND, error  # it has ended, and is forgotten at once


def test_waiting_requests_fill_memory_until_new_work_is_refused_and_all_is_well_again_with_room(loaded, pb):
    with limited(f"--max_memory={loaded + (ROOM_MIB << 20)}B") as server:
        running = begin(server)
        assert page(server.http, "/readyz") == (200, "ready\n")
        ids, refusal = fill(server)
        assert refusal.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, refusal
        assert field_and_reason(refusal)[1] == "MEMORY", refusal.details()
        assert re.search(r"take \d+ MiB of the \d+ MiB that are left", refusal.details()), refusal.details()
        assert "grpc-retry-pushback-ms" in dict(refusal.trailing_metadata())
        jobs = server.generation.ListJobs(pb.ListJobsRequest(page_size=1), timeout=30).jobs
        assert jobs[0].id == ids[-1], "what was refused is not stored"

        status, why = page(server.http, "/readyz")
        assert (status, why[:8]) == (503, "MEMORY: ")
        assert page(server.http, "/healthz")[0] == 200
        assert metric(server, "denoised_memory_pressure") >= 0.80
        assert metric(server, 'denoised_memory_shed_total{what="work"}') >= 1
        assert server.get(running).state == pb.RUNNING, "what was taken goes on"

        cancel_all(server, ids)
        eventually(lambda: page(server.http, "/readyz")[0] == 200, what="readiness")
        again = server.submit(num_inference_steps=1).id
        server.generation.CancelJob(pb.CancelJobRequest(job_id=running), timeout=60)
        assert server.wait_for_end(again).state == pb.SUCCEEDED


class Crowd:
    """Watchers over some connections, and what became of them. The connections are there before the first watcher: once
    new ones are closed, no watcher would be told why.
    """

    def __init__(self, server, connections=60):
        self.calls = []
        self.channels = [grpc.insecure_channel(server.public, (*CHANNEL_OPTIONS, ("n", n)))
                         for n in range(connections)]
        self.unused = list(self.channels)

    def __enter__(self):
        for channel in self.channels:
            grpc.channel_ready_future(channel).result(timeout=20)
        return self

    def __exit__(self, *_):
        for channel in self.channels:
            channel.close()

    def grow(self, job_id, streams=200):
        stub = stubs().GenerationServiceStub(self.unused.pop())
        self.calls += [stub.WatchJob(stubs().WatchJobRequest(job_id=job_id), timeout=300) for _ in range(streams)]
        eventually(lambda: all(call.done() or call.initial_metadata() is not None for call in self.calls[-5:]))

    def sent_away(self):
        return [call for call in self.calls if call.done() and call.code() == grpc.StatusCode.UNAVAILABLE]


def crowd_until_some_are_sent_away(server, crowd, job_id):
    while crowd.unused:
        if crowd.sent_away():  # or not let in
            return
        crowd.grow(job_id)
    raise AssertionError(f"nobody was sent away: {metric(server, 'denoised_memory_pressure')}")


def test_watchers_are_sent_away_and_come_back(loaded, pb):
    with limited(f"--max_memory={loaded + (ROOM_MIB << 20)}B") as server:
        begin(server)
        with Crowd(server) as crowd:
            ids, _ = fill(server)
            seen = server.get(ids[0]).sequence
            crowd_until_some_are_sent_away(server, crowd, ids[0])
            first = eventually(crowd.sent_away, what="a watcher's end")[0]
            assert field_and_reason(first)[1] == "MEMORY", first.details()
            assert "grpc-retry-pushback-ms" in dict(first.trailing_metadata())
        cancel_all(server, ids[1:])
        eventually(lambda: page(server.http, "/readyz")[0] == 200, what="readiness")
        server.generation.CancelJob(pb.CancelJobRequest(job_id=ids[0]), timeout=60)
        request = pb.WatchJobRequest(job_id=ids[0], after_sequence=seen)
        states = list(server.generation.WatchJob(request, timeout=60))
        assert states[-1].state == pb.CANCELLED and states[0].sequence > seen


class ControlGroup:
    """A control group of memory for one process, of version 1 or 2; skips the test where none can be made."""

    def __init__(self, limit):
        root = pathlib.Path("/sys/fs/cgroup")
        self.v2 = (root / "cgroup.controllers").exists()
        lines = pathlib.Path("/proc/self/cgroup").read_text().splitlines()
        own = [line.split(":", 2)[2] for line in lines
               if line.startswith("0::") and self.v2 or "memory" in line.split(":")[1].split(",")]
        if not own:
            pytest.skip("this machine has no control groups of memory")
        parent = (root if self.v2 else root / "memory") / own[0].lstrip("/")
        self.path = parent / f"denoised_{os.getpid()}"
        try:
            self.path.mkdir()
            (self.path / ("memory.max" if self.v2 else "memory.limit_in_bytes")).write_text(str(limit))
        except OSError as error:
            self.close()
            pytest.skip(f"no control group with a limit can be made here: {error}")

    def close(self):
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def killed(self):
        text = (self.path / ("memory.events" if self.v2 else "memory.oom_control")).read_text()
        return int(re.search(r"^oom_kill (\d+)$", text, re.M)[1])

    def wrapper(self):
        return ("sh", "-c", f'echo $$ > "{self.path}/cgroup.procs"; exec "$@"', "sh")


def test_under_a_control_group_the_server_is_not_killed(loaded, pb):
    # auto keeps 64 MiB free of so small a limit.
    group = ControlGroup(loaded + ((ROOM_MIB + 64) << 20))
    try:
        with limited(wrapper=group.wrapper()) as server:
            begin(server)
            with Crowd(server) as crowd:
                ids, refusal = fill(server)
                assert field_and_reason(refusal)[1] == "MEMORY", refusal.details()
                crowd_until_some_are_sent_away(server, crowd, ids[0])
                for _ in range(200):
                    with contextlib.suppress(grpc.RpcError):
                        server.submit(PROMPT)
                assert page(server.http, "/healthz")[0] == 200
            assert group.killed() == 0 and server.process.poll() is None
            cancel_all(server, ids)
            eventually(lambda: page(server.http, "/readyz")[0] == 200, what="readiness")
    finally:
        group.close()
