"""Forcing backends while jobs run, and what receipts, explanations and metrics say about it."""

import os
import signal
import subprocess
import sys
import time

import grpc
import pytest
import requests

from harness import ROOT, SLOW, Server, error_of, eventually, field_and_reason

STEPS = 300


def self_entries(job):
    return [entry for entry in job.receipt.entries if entry.role == "self"]


def assert_contiguous(entries, steps):
    position = 0
    for entry in entries:
        assert entry.first_step == position
        position = entry.last_step + 1
    assert position == steps


def leases(server, pb):
    return list(server.operator.ListLeases(pb.ListLeasesRequest(), timeout=30).leases)


def metrics(server):
    session = requests.Session()
    session.trust_env = False  # no proxy on the way to loopback
    return session.get(f"http://{server.http}/metrics", timeout=30).text


def test_force_reaches_a_running_job_and_release_gives_it_back(server, pb):
    job = server.submit(num_inference_steps=STEPS, height=128, width=128)
    before = server.wait_until(job.id, lambda j: j.step >= 5)
    lease = server.operator.ForceBackend(
        pb.ForceBackendRequest(backend="REFERENCE", reason="test"), timeout=30)
    forced_at = server.get(job.id).step
    after = server.wait_until(job.id, lambda j: j.step >= forced_at + 20)
    server.operator.ReleaseForce(pb.ReleaseForceRequest(lease_id=lease.id), timeout=30)
    done = server.wait_for_end(job.id)
    assert done.state == pb.SUCCEEDED, done.error
    first, forced, last = self_entries(done)
    assert_contiguous([first, forced, last], STEPS)
    assert first.source == last.source == "automatic" and first.ran == last.ran != "REFERENCE"
    assert (forced.ran, forced.source, forced.lease_id) == ("REFERENCE", "force", lease.id)
    # At the next step: not before it was asked for, and no later than the step that was under way.
    assert before.step - 1 <= forced.first_step <= forced_at + 1
    assert after.step - 1 <= forced.last_step < STEPS - 1
    page = metrics(server)
    assert 'denoised_backend_switch_total{cause="force"}' in page
    assert 'denoised_attention_calls_total{backend="REFERENCE",role="self"}' in page


def test_force_with_an_end_ends_by_itself(server, pb):
    request = pb.ForceBackendRequest(backend="REFERENCE")
    request.ttl.FromMilliseconds(300)
    lease = server.operator.ForceBackend(request, timeout=30)
    assert 0 < lease.remaining.ToMilliseconds() <= 300
    assert [held.id for held in leases(server, pb)] == [lease.id]
    eventually(lambda: not leases(server, pb), what="the end of the force")
    error = error_of(lambda: server.operator.ReleaseForce(
        pb.ReleaseForceRequest(lease_id=lease.id), timeout=30))
    assert error.code() == grpc.StatusCode.NOT_FOUND


def test_newest_force_wins(server, pb):
    for name in ("REFERENCE", "TORCH_SDPA"):
        server.operator.ForceBackend(pb.ForceBackendRequest(backend=name), timeout=30)
    assert [lease.backend for lease in leases(server, pb)] == ["TORCH_SDPA", "REFERENCE"]
    job = server.wait_for_end(server.submit(num_inference_steps=2).id)
    assert [entry.ran for entry in self_entries(job)] == ["TORCH_SDPA"]


def test_force_beats_the_request(server, pb):
    server.operator.ForceBackend(pb.ForceBackendRequest(backend="REFERENCE"), timeout=30)
    options = pb.AttentionOptions(backend="TORCH_SDPA")
    job = server.wait_for_end(server.submit(num_inference_steps=2, attention=options).id)
    entry, = self_entries(job)
    assert (entry.asked, entry.ran, entry.source) == ("TORCH_SDPA", "REFERENCE", "force")


def test_hold_lasts_as_long_as_its_stream(server, pb):
    stream = server.operator.HoldBackend(pb.HoldBackendRequest(backend="REFERENCE"))
    lease = next(stream)
    assert [held.id for held in leases(server, pb)] == [lease.id]
    stream.cancel()
    eventually(lambda: not leases(server, pb), what="the end of the hold")


def test_hold_ends_when_its_process_is_killed_and_a_running_job_switches_back(server, pb):
    job = server.submit(**SLOW)
    server.wait_until(job.id, lambda j: j.step >= 2)
    script = ("import sys; sys.path.insert(0, 'tests/system'); import harness, grpc, time\n"
              "pb = harness.stubs()\n"
              "channel = grpc.insecure_channel(sys.argv[1], harness.CHANNEL_OPTIONS)\n"
              "stream = pb.AdminServiceStub(channel).HoldBackend(pb.HoldBackendRequest(backend='REFERENCE'))\n"
              "next(stream); print('held', flush=True); time.sleep(60)\n")
    holder = subprocess.Popen([sys.executable, "-c", script, server.admin], cwd=ROOT,
                              stdout=subprocess.PIPE, text=True,
                              env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})
    assert holder.stdout.readline() == "held\n"
    held_at = server.get(job.id).step
    server.wait_until(job.id, lambda j: j.step >= held_at + 5)
    holder.kill()
    holder.wait()
    eventually(lambda: not leases(server, pb), what="the end of the hold")
    released_at = server.get(job.id).step
    server.wait_until(job.id, lambda j: j.step >= released_at + 5)
    server.generation.CancelJob(pb.CancelJobRequest(job_id=job.id), timeout=30)
    entries = self_entries(server.wait_for_end(job.id))
    assert [entry.source for entry in entries] == ["automatic", "force", "automatic"]


def test_forces_under_fire_leave_true_receipts(server, pb):
    job = server.submit(num_inference_steps=STEPS, height=128, width=128)
    server.wait_until(job.id, lambda j: j.step >= 1)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        lease = server.operator.ForceBackend(pb.ForceBackendRequest(backend="REFERENCE"), timeout=30)
        time.sleep(0.03)
        server.operator.ReleaseForce(pb.ReleaseForceRequest(lease_id=lease.id), timeout=30)
        time.sleep(0.03)
    done = server.wait_for_end(job.id)
    assert done.state == pb.SUCCEEDED
    entries = self_entries(done)
    assert_contiguous(entries, STEPS)
    assert {entry.source for entry in entries} == {"automatic", "force"}
    for entry in entries:
        assert (entry.source == "force") == (entry.ran == "REFERENCE") == bool(entry.lease_id)
    guided = 2 if done.parameters.guidance_scale > 1 else 1
    for entry in entries:
        assert entry.calls == (entry.last_step - entry.first_step + 1) * 2 * guided


def test_bad_forces_are_refused(server, pb):
    force = server.operator.ForceBackend
    error = error_of(lambda: force(pb.ForceBackendRequest(backend="FAST"), timeout=30))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT and "TORCH_SDPA" in error.details()
    assert field_and_reason(error)[0] == "backend"
    error = error_of(lambda: force(pb.ForceBackendRequest(backend="NO_ATTENTION"), timeout=30))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "TORCH_SDPA" in error.details(), "names what is usable"
    request = pb.ForceBackendRequest(backend="REFERENCE")
    request.ttl.FromSeconds(-1)
    error = error_of(lambda: force(request, timeout=30))
    assert field_and_reason(error)[0] == "ttl"
    assert leases(server, pb) == []


def test_refused_request_falls_back_and_the_receipt_says_so(server, pb):
    options = pb.AttentionOptions(backend="NO_ATTENTION", policy=pb.PREFER)
    job = server.wait_for_end(server.submit(num_inference_steps=2, attention=options).id)
    assert job.state == pb.SUCCEEDED
    entry, = self_entries(job)
    assert entry.asked == "NO_ATTENTION" and entry.ran != "NO_ATTENTION" and entry.source == "automatic"
    assert ("request", "NO_ATTENTION") in [(r.source, r.backend) for r in entry.refusals]
    assert all(refusal.reason for refusal in entry.refusals)


def test_environment_chooses_below_the_request(pb):
    with Server(environment={"FASTVIDEO_ATTENTION_BACKEND": "REFERENCE"}) as server:
        entry, = self_entries(server.wait_for_end(server.submit(num_inference_steps=1).id))
        assert (entry.ran, entry.source) == ("REFERENCE", "environment")
        options = pb.AttentionOptions(backend="TORCH_SDPA")
        job = server.wait_for_end(server.submit(num_inference_steps=1, attention=options).id)
        assert [(e.ran, e.source) for e in self_entries(job)] == [("TORCH_SDPA", "request")]


def test_backends_and_explanations_agree_with_what_runs(server, pb):
    backends = server.operator.ListBackends(pb.ListBackendsRequest(), timeout=30).backends
    usable = {backend.name for backend in backends if backend.usable}
    assert {"REFERENCE", "TORCH_SDPA"} <= usable
    assert all(backend.why_not for backend in backends if not backend.usable)
    query = pb.ExplainSelectionRequest(height=64, width=64, num_frames=5)
    roles = {r.role: r for r in server.operator.ExplainSelection(query, timeout=30).roles}
    job = server.wait_for_end(server.submit(num_inference_steps=1).id)
    assert {"self", "cross"} <= set(roles)
    ran = {entry.role: entry.ran for entry in job.receipt.entries}
    for role, explanation in roles.items():
        assert explanation.would_run == ran[role]
    assert roles["self"].spec.q_len == 2 * 4 * 4
    server.operator.ForceBackend(pb.ForceBackendRequest(backend="REFERENCE"), timeout=30)
    roles = {r.role: r for r in server.operator.ExplainSelection(query, timeout=30).roles}
    assert (roles["self"].would_run, roles["self"].source) == ("REFERENCE", "force")


def test_explain_refuses_bad_queries(server, pb):
    explain = server.operator.ExplainSelection
    error = error_of(lambda: explain(pb.ExplainSelectionRequest(model="nope"), timeout=30))
    assert error.code() == grpc.StatusCode.NOT_FOUND
    error = error_of(lambda: explain(pb.ExplainSelectionRequest(height=33), timeout=30))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert field_and_reason(error)[0] == "height"


@pytest.mark.parametrize("level", ["debug", "info"])
def test_log_level_is_set(server, pb, level):
    server.operator.SetLogLevel(pb.SetLogLevelRequest(level=level), timeout=30)
    reply = server.operator.SetLogLevel(pb.SetLogLevelRequest(level="info"), timeout=30)
    assert reply.previous_level == level


def test_drain_refuses_new_work_and_lets_the_rest_go_on(pb):
    with Server() as server:
        job = server.submit(num_inference_steps=200, height=128, width=128)
        server.wait_until(job.id, lambda j: j.step >= 1)
        reply = server.operator.Drain(pb.DrainRequest(), timeout=30)
        assert (reply.queued, reply.running) == (0, 1)
        error = error_of(lambda: server.submit())
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert field_and_reason(error)[1] == "DRAINING"
        assert server.wait_for_end(job.id).state == pb.SUCCEEDED
        assert server.process.poll() is None, "only a signal ends the process"
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=10) == 0
