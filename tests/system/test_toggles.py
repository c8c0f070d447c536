"""Receipts while an operator forces and releases ten times a second under twenty jobs that share forwards: what
the receipts say in all is what the server's counters say, and each receipt holds every step and layer once."""

import collections
import concurrent.futures
import itertools
import random
import re
import threading

import grpc
import pytest

import harness

JOBS = 20
STEPS = 24
ROLES = ("self", "cross")
COUNTER = re.compile(r'denoised_attention_(calls_total|seconds_sum){backend="(\w+)",role="(\w+)"} (\S+)')
# The last serves self-attention only: a force of it for cross-attention alone is refused.
BACKENDS = ("REFERENCE", "TORCH_SDPA", "SAGE_ATTN", "SLIDING_TILE_ATTN")
REFUSALS = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND)


@pytest.fixture(scope="module")
def server():
    with harness.Server("--threads=2", repository=harness.ROOT / "model_repository") as running:
        yield running


def counted(server):
    """{(backend, role): (calls, seconds)} so far."""
    counts = collections.defaultdict(lambda: [0, 0.0])
    for what, backend, role, value in COUNTER.findall(harness.page(server.http, "/metrics")[1]):
        counts[backend, role][what == "seconds_sum"] = float(value)
    return counts


def a_scope(pb, random, jobs):
    return random.choice((
        pb.LeaseScope(),
        pb.LeaseScope(layers=pb.Interval(first=0, last=random.randrange(3))),
        pb.LeaseScope(role=random.choice(ROLES)),
        pb.LeaseScope(steps=pb.Interval(first=random.randrange(STEPS // 2), last=STEPS)),
        pb.LeaseScope(sigma=pb.SigmaRange(low=0.3, high=0.8)),
        pb.LeaseScope(share_percent=50),
        pb.LeaseScope(job_id=random.choice(jobs))))


class Operator(threading.Thread):
    """Forces something and releases something else, ten times a second, until it is told to stop."""

    def __init__(self, server, pb, jobs):
        super().__init__()
        self.server, self.pb, self.jobs = server, pb, jobs
        self.stop = threading.Event()
        self.leases = []

    def run(self):
        dice = random.Random(7)
        held = collections.deque()
        while not self.stop.wait(0.1):
            try:
                lease = self.server.operator.ForceBackend(self.pb.ForceBackendRequest(
                    backend=dice.choice(BACKENDS), scope=a_scope(self.pb, dice, self.jobs)), timeout=30)
            except grpc.RpcError as error:  # cross-attention alone, or a job that has ended
                assert error.code() in REFUSALS, error
                continue
            self.leases.append(lease.id)
            held.append(lease.id)
            if len(held) > dice.randrange(4):
                self.server.operator.ReleaseForce(self.pb.ReleaseForceRequest(lease_id=held.popleft()), timeout=30)


def test_receipts_are_the_counters_while_forces_come_and_go_under_jobs_that_share_forwards(server, pb):
    before, forwards_before = counted(server), harness.forwards(server)
    requests = [dict(prompt="a red circle moving left", seed=i, height=64, width=64, num_frames=5,
                     num_inference_steps=STEPS, guidance_scale=1.0 + i % 3) for i in range(JOBS)]
    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        jobs = [job.id for job in pool.map(lambda fields: server.submit(**fields), requests)]
    operator = Operator(server, pb, jobs)
    operator.start()
    try:
        done = [server.wait_for_end(job) for job in jobs]
    finally:
        operator.stop.set()
        operator.join()
    after, forwards = counted(server), harness.forwards(server)
    assert forwards[1] - forwards_before[1] >= 4 * (forwards[0] - forwards_before[0]), "rows a forward"

    told = collections.defaultdict(lambda: [0, 0.0])
    layers = server.models.ListModels(pb.ListModelsRequest(), timeout=30).models[0].num_layers
    forced = set()
    for job in done:
        assert job.state == pb.SUCCEEDED, job.error
        cells = collections.Counter()
        for entry in job.receipt.entries:
            told[entry.ran, entry.role][0] += entry.calls
            told[entry.ran, entry.role][1] += entry.seconds
            if entry.lease_id:
                forced.add(entry.lease_id)
            if entry.role in ROLES:
                first, last = ((entry.layers.first, entry.layers.last) if entry.HasField("layers")
                               else (0, layers - 1))
                assert entry.first_step <= entry.last_step and first <= last
                steps = range(entry.first_step, entry.last_step + 1)
                cells.update(itertools.product((entry.role,), steps, range(first, last + 1)))
        assert set(cells) == set(itertools.product(ROLES, range(STEPS), range(layers)))
        assert set(cells.values()) == {1}, "a step of a layer ran once"
    for key in set(told) | set(after):
        if key[1] == "text_encoder":
            continue  # a receipt also tells of a prompt that was encoded for another job
        calls, seconds = (after[key][i] - before[key][i] for i in (0, 1))
        assert told[key][0] == calls, f"{key}: receipts {told[key][0]}, counters {calls}"
        assert told[key][1] == pytest.approx(seconds, rel=1e-6, abs=1e-9), key
    assert forced <= set(operator.leases)
    assert len(operator.leases) >= 10 and len(forced) >= 5, "forces came while the jobs ran, and ran"
    assert sum(1 for job in done if len({e.lease_id for e in job.receipt.entries if e.lease_id}) > 1) >= JOBS // 2
