"""Faults that are rehearsed on the real server with the checkpoint that ships: a step that goes wrong under a lease is
done again without it, and a backend that throws is not chosen for a while."""

import io
import json
import queue
import time

import grpc
import harness
import numpy as np
import pytest

from harness import ctl, error_of, eventually, field_and_reason, page, tensor

BAD = "SAGE_ATTN"
STEPS = 8
PROMPT = "a red circle moving left"
FOREVER = 600_000


@pytest.fixture(scope="module")
def server():
    with harness.Server("--enable_drills", repository=harness.ROOT / "model_repository") as running:
        yield running


@pytest.fixture(autouse=True)
def no_drill_is_left(server, pb):
    yield
    drill(server, pb, "stall", 1)  # in the place of any other, and over at once
    drill(server, pb, "stall", 1, backend="REFERENCE")


@pytest.fixture(scope="module")
def usual(server, pb):
    """What nobody meddled with, by the first job of the server."""
    return draw(server, pb)[0]


def drill(server, pb, fault, ttl_ms=FOREVER, backend=BAD):
    request = pb.DrillRequest(backend=backend, fault=fault, reason="a rehearsal")
    request.ttl.FromMilliseconds(ttl_ms)
    server.operator.Drill(request, timeout=30)


def submit(server, pb, **fields):
    usual = dict(prompt=PROMPT, seed=5, num_inference_steps=STEPS, formats=[pb.NPY])
    request = pb.GenerationRequest(**(usual | fields))
    return server.generation.SubmitJob(request, timeout=30)


def frames_of(server, pb, job):
    return np.load(io.BytesIO(server.fetch(job.id, pb.NPY)))


def finish(server, pb, job):
    """The values of a job's frames, and the job."""
    done = server.wait_for_end(job.id)
    assert done.state == pb.SUCCEEDED, done.error
    return frames_of(server, pb, done), done


def draw(server, pb, **fields):
    return finish(server, pb, submit(server, pb, **fields))


def force(server, pb, backend=BAD, **fields):
    return server.operator.ForceBackend(pb.ForceBackendRequest(backend=backend, reason="faster", **fields), timeout=30)


def leases(server, pb):
    return [lease.id for lease in server.operator.ListLeases(pb.ListLeasesRequest(), timeout=30).leases]


def release(server, pb):
    for lease in leases(server, pb):
        server.operator.ReleaseForce(pb.ReleaseForceRequest(lease_id=lease), timeout=30)


def story(server, pb, subject):
    """(what, old, new, reason) of the audit's entries about this."""
    events = server.operator.WatchAudit(pb.WatchAuditRequest(), timeout=30)
    return [(e.what, e.old, e.new, e.reason) for e in events if e.subject.startswith(subject)]


def rows(receipt, role="self"):
    return [entry for entry in receipt.entries if entry.role == role]


def breakers(server, pb, name=BAD):
    listed = server.operator.ListBackends(pb.ListBackendsRequest(), timeout=30).backends
    return next(backend for backend in listed if backend.name == name).breakers


def metric(server, name, **labels):
    """The value of a series, 0 where there is none."""
    for line in page(server.http, "/metrics")[1].splitlines():
        if line.startswith(name + "{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
            return float(line.rsplit(" ", 1)[1])
    return 0


def attention_calls(server):
    return metric(server, "denoised_attention_calls_total", backend=BAD, role="self")


# ---- NaN

@pytest.mark.parametrize("kind", ["plain", "pinned", "strict"])
def test_nan_under_a_lease_ends_in_the_video_of_the_reference(server, pb, usual, kind):
    lease = force(server, pb, policy=pb.STRICT if kind == "strict" else pb.PREFER)
    rolled = metric(server, "denoised_rollback_total", backend=BAD, cause="not_finite")
    called = attention_calls(server)
    drill(server, pb, "nan")
    frames, job = draw(server, pb, pin_backends=kind == "pinned")
    assert np.array_equal(frames, usual), "bit for bit as if the lease had not been"
    assert {entry.ran for entry in rows(job.receipt)}.isdisjoint({BAD})
    assert sum(entry.calls for entry in rows(job.receipt)) == STEPS * 6 * 2, "steps, layers, passes of guidance"
    assert attention_calls(server) == called, "a step that was undone counts nothing"
    note, = [note for note in job.receipt.notes if lease.id in note]
    assert "step 1 was undone" in note and BAD in note and "not finite" in note
    assert leases(server, pb) == []
    assert metric(server, "denoised_rollback_total", backend=BAD, cause="not_finite") == rolled + 1
    made, undone, ended = story(server, pb, lease.id)
    assert (made[0], undone[0], ended[0]) == ("force", "rollback", "end")
    assert undone[1] == BAD and undone[2] == rows(job.receipt)[0].ran
    for what in (undone, ended):
        assert what[3].startswith("not_finite: ") and job.id in what[3] and "not finite" in what[3]
    assert '"what":"rollback"' in server.read_log()


def test_nan_in_the_middle_of_a_job_undoes_that_step_alone(server, pb):
    reference = pb.AttentionOptions(backend="REFERENCE")
    wanted, _ = draw(server, pb, attention=reference)
    drill(server, pb, "nan")
    lease = force(server, pb, scope=pb.LeaseScope(steps=pb.Interval(first=3, last=5)))
    frames, job = draw(server, pb, attention=reference)
    assert np.array_equal(frames, wanted)
    assert leases(server, pb) == []
    row, = rows(job.receipt)
    assert (row.ran, row.first_step, row.last_step) == ("REFERENCE", 0, STEPS - 1)
    assert any("step 4 was undone" in note and lease.id in note for note in job.receipt.notes)


def test_nan_of_the_text_encoder_is_undone_before_a_step_sees_it(server, pb):
    prompt = "a blue square moving up"
    wanted, before = draw(server, pb, prompt=prompt)
    lease = force(server, pb, backend="REFERENCE")
    drill(server, pb, "nan", backend="REFERENCE")
    frames, job = draw(server, pb, prompt=prompt)
    assert np.array_equal(frames, wanted) and job.receipt.fingerprint == before.receipt.fingerprint
    assert any("a prompt was undone" in note and lease.id in note for note in job.receipt.notes)
    assert leases(server, pb) == []


def test_others_in_the_same_forwards_keep_their_bits(server, pb):
    """A round in which they share none, since a forward of several was slow by chance, says nothing: there is another."""
    wanted, _ = draw(server, pb, num_frames=5)
    assert any(shared_beside_nan(server, pb, wanted) for _ in range(12)), "they never shared forwards"


def shared_beside_nan(server, pb, wanted):
    lease = force(server, pb, scope=pb.LeaseScope(tenant="studio", steps=pb.Interval(first=2, last=5)))
    drill(server, pb, "nan")
    before = harness.forwards(server)
    tenants = ("first", "studio", "third", "fourth", "fifth", "sixth")
    jobs = [submit(server, pb, tenant=tenant, num_frames=5) for tenant in tenants]
    done = [finish(server, pb, job) for job in jobs]
    after = harness.forwards(server)
    for frames, _ in done:
        assert np.array_equal(frames, wanted)
    noted = [any(lease.id in note for note in job.receipt.notes) for _, job in done]
    assert noted == [tenant == "studio" for tenant in tenants]
    assert len({job.receipt.fingerprint for _, job in done}) == 1
    assert leases(server, pb) == []
    return after[1] - before[1] >= 3 * (after[0] - before[0])  # a job has two rows


def test_nan_that_a_job_asked_for_itself_fails_it(server, pb):
    drill(server, pb, "nan")
    job = server.wait_for_end(submit(server, pb, attention=pb.AttentionOptions(backend=BAD)).id)
    assert job.state == pb.FAILED and "not finite" in job.error.message


def test_a_lease_is_innocent_of_what_comes_without_it_too(server, pb):
    kept = force(server, pb, backend="REFERENCE")
    drill(server, pb, "nan", backend="REFERENCE")
    drill(server, pb, "nan")
    job = server.wait_for_end(submit(server, pb, attention=pb.AttentionOptions(backend=BAD)).id)
    assert job.state == pb.FAILED and "not finite" in job.error.message
    assert leases(server, pb) == [kept.id]


def test_a_session_and_a_call_go_on_without_the_lease(server, pb):
    def step(request):
        return server.denoise.Denoise(request, timeout=60)

    def stepped():
        requests = queue.Queue()
        opened = pb.SessionOpen(prompt=PROMPT, seed=5, num_inference_steps=STEPS)
        verbs = (dict(open=opened), dict(step=pb.SessionStep(count=2)), dict(read=pb.SessionRead()))
        for tag, verb in enumerate(verbs, 1):
            requests.put(pb.SessionRequest(tag=tag, **verb))
        requests.put(None)
        answers = list(server.denoise.Session(iter(requests.get, None), timeout=60))
        assert not any(answer.HasField("error") for answer in answers), answers
        return answers[1].stepped.receipt, answers[2].latents

    _, wanted = stepped()
    lease = force(server, pb)
    drill(server, pb, "nan")
    receipt, latents = stepped()
    assert latents.data == wanted.data
    assert any(lease.id in note for note in receipt.notes)
    assert leases(server, pb) == []

    texts = np.random.default_rng(0).standard_normal((1, 16, text_width())).astype("<f4")
    request = pb.DenoiseRequest(latents=latents, timestep=tensor(pb, np.array([500], "<f4")),
                                encoder_hidden_states=tensor(pb, texts))
    predicted = step(request).result.data
    lease = force(server, pb)
    reply = step(request)
    assert reply.result.data == predicted
    assert any("the step was undone" in note and lease.id in note for note in reply.receipt.notes)
    assert leases(server, pb) == []


def text_width():
    config = json.loads((harness.ROOT / "model_repository/shapes/transformer/config.json").read_text())
    return config["text_dim"]


# ---- a stall

def test_a_stall_ends_with_a_cancel(server, pb):
    drill(server, pb, "stall")
    job = submit(server, pb, attention=pb.AttentionOptions(backend=BAD))
    server.wait_until(job.id, lambda j: j.state == pb.RUNNING)
    server.generation.CancelJob(pb.CancelJobRequest(job_id=job.id), timeout=30)
    assert server.wait_for_end(job.id, timeout=20).state == pb.CANCELLED


def test_a_stall_under_a_lease_ends_with_the_drill_and_costs_nothing_but_time(server, pb):
    lease = force(server, pb)
    wanted, _ = draw(server, pb)
    drill(server, pb, "stall", 1500)
    begun = time.monotonic()
    frames, job = draw(server, pb)
    assert time.monotonic() - begun > 1
    assert np.array_equal(frames, wanted)
    assert {(entry.ran, entry.lease_id) for entry in rows(job.receipt)} == {(BAD, lease.id)}
    assert leases(server, pb) == [lease.id] and not breakers(server, pb)


# ---- what throws

def test_a_backend_that_throws_is_left_out_for_a_minute_and_probed(server, pb, usual):
    lease = force(server, pb)
    done = ctl("drill", BAD, "--fault=throw", "--ttl=10m", f"--admin={server.admin}")
    assert done.returncode == 0 and done.stdout == f"{BAD}: throw for 600 s\n", (done.stdout, done.stderr)
    frames, job = draw(server, pb)
    opened = time.monotonic()
    assert np.array_equal(frames, usual), "bit for bit as if the lease had not been"
    assert {entry.ran for entry in rows(job.receipt)}.isdisjoint({BAD})
    assert len([note for note in job.receipt.notes if "as a drill told it to" in note]) == 3
    assert leases(server, pb) == [lease.id], "it waits for the backend"
    assert metric(server, "denoised_rollback_total", backend=BAD, cause="failed") == 3

    breaker, = breakers(server, pb)
    assert (breaker.model, breaker.state, breaker.failures) == ("shapes", "open", 3)
    assert breaker.shape.startswith("self float32 head 48 ")
    assert 0 < breaker.remaining.ToMilliseconds() <= 60_000
    assert metric(server, "denoised_breaker_open", model="shapes", backend=BAD) == 1
    what, old, new, reason = story(server, pb, f"{BAD} of shapes, self")[-1]
    assert (what, old, new) == ("breaker", "closed", "open") and "as a drill told it to" in reason
    assert "circuit breaker open (shapes, self" in ctl("backends", f"--admin={server.admin}").stdout

    release(server, pb)
    explained = ctl("explain", f"--backend={BAD}", "--json", f"--admin={server.admin}")
    role = next(r for r in json.loads(explained.stdout)["roles"] if r["role"] == "self")
    reason, = [r["reason"] for r in role["refusals"] if r["backend"] == BAD]
    assert reason.startswith("circuit breaker open after 3 failures: ") and "probe in" in reason
    reason, = [r["reason"] for r in role["wishes"] if r["backend"] == BAD]
    assert reason.startswith("circuit breaker open after 3 failures: ")
    strict = pb.AttentionOptions(backend=BAD, policy=pb.STRICT)
    error = error_of(lambda: submit(server, pb, attention=strict))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION and "circuit breaker open" in error.details()
    rule = pb.AttentionOptions(schedule=[pb.AttentionRule(backend=BAD, policy=pb.STRICT)])
    error = error_of(lambda: submit(server, pb, attention=rule))
    assert error.details().startswith("attention.schedule[0].backend: ") and "circuit breaker open" in error.details()

    drill(server, pb, "stall", 1)
    time.sleep(max(0, opened + 60.1 - time.monotonic()))
    assert breakers(server, pb)[0].state == "half_open"
    _, job = draw(server, pb, attention=strict)
    assert {entry.ran for entry in rows(job.receipt)} == {BAD}
    assert not breakers(server, pb)
    assert story(server, pb, f"{BAD} of shapes, self")[-1][:3] == ("breaker", "half_open", "closed")
    eventually(lambda: metric(server, "denoised_breaker_open", model="shapes", backend=BAD) == 0)


# ---- who may drill

def test_drills_want_a_flag_a_known_fault_and_an_end(server, pb):
    def refused(**fields):
        request = pb.DrillRequest(**(dict(backend=BAD, fault="nan") | fields))
        return field_and_reason(error_of(lambda: server.operator.Drill(request, timeout=30)))

    second = pb.DrillRequest(backend=BAD, fault="nan")
    second.ttl.FromSeconds(1)
    assert refused(backend="FAST", ttl=second.ttl)[0] == "backend"
    assert refused(fault="explode", ttl=second.ttl)[0] == "fault"
    assert refused()[0] == "ttl"
    long = pb.DrillRequest()
    long.ttl.FromSeconds(601)
    assert refused(ttl=long.ttl)[0] == "ttl"
    assert refused(ttl=second.ttl, reason="x" * 257)[0] == "reason"
    drill(server, pb, "nan", 1)
    assert story(server, pb, BAD)[-1] == ("drill", "", "nan", "a rehearsal")
    with harness.Server() as plain:
        error = error_of(lambda: plain.operator.Drill(second, timeout=30))
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert field_and_reason(error)[1] == "DRILLS_OFF"
        done = ctl("drill", BAD, "--fault=nan", "--ttl=1s", f"--admin={plain.admin}")
        assert done.returncode == 1 and "--enable_drills" in done.stderr


@pytest.mark.parametrize("words", [("--fault=nan",), ("--ttl=1s",), ("--fault=explode", "--ttl=1s"),
                                   ("--fault=nan", "--ttl=0s"), ("more", "--fault=nan", "--ttl=1s")])
def test_a_drill_that_is_typed_wrong_asks_nobody(words):
    done = ctl("drill", BAD, *words, "--admin=127.0.0.1:1")
    assert done.returncode == 2, done.stderr
