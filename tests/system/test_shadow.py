"""Comparisons of backends on the real server with the checkpoint that ships: a shadow finds how far another backend
is and changes no bit, and a lease whose backend breaks its budget is undone."""

import io
import json
import sys

import harness
import numpy as np
import pytest

from harness import ctl, error_of, eventually, field_and_reason, page

sys.path.insert(0, str(harness.ROOT / "tools/shapes"))
import captions  # noqa: E402
import score  # noqa: E402

PROMPTS = captions.held_out_prompts(300)
SPARSE = "VIDEO_SPARSE_ATTN"
PARAMETERS = {"sparsity": 0.9}
BANDS = {"0-0.2", "0.2-0.4", "0.4-0.6", "0.6-0.8", "0.8-1"}
MANY = 200  # jobs after which what must happen has


@pytest.fixture(scope="module")
def server():
    with harness.Server(repository=harness.ROOT / "model_repository") as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_is_left(server, pb):
    yield
    server.operator.ReleaseForce(pb.ReleaseForceRequest(all=True), timeout=30)
    for shadow in shadows(server, pb):
        if not shadow.end:
            server.operator.StopShadow(pb.StopShadowRequest(id=shadow.id), timeout=30)


def draw(server, pb, number=0, **fields):
    """The values of a job's frames, and the job."""
    request = pb.GenerationRequest(prompt=PROMPTS[number][0], seed=1000 + number, formats=[pb.NPY], **fields)
    done = server.wait_for_end(server.generation.SubmitJob(request, timeout=30).id)
    assert done.state == pb.SUCCEEDED, done.error
    return np.load(io.BytesIO(server.fetch(done.id, pb.NPY))), done


def draw_until(server, pb, condition, what):
    """Draws until `condition()` gives something after a job; that, the last job's frames and the job."""
    for _ in range(MANY):
        frames, job = draw(server, pb)
        if found := condition():
            return found, frames, job
    raise AssertionError(f"{what} did not happen within {MANY} jobs")


def start(server, pb, candidate="SAGE_ATTN", **fields):
    return server.operator.Shadow(pb.ShadowRequest(candidate=candidate, **fields), timeout=30)


def shadows(server, pb):
    return server.operator.ListShadows(pb.ListShadowsRequest(), timeout=30).shadows


def shadow_of(server, pb, identity):
    return next(shadow for shadow in shadows(server, pb) if shadow.id == identity)


def leases(server, pb):
    return list(server.operator.ListLeases(pb.ListLeasesRequest(), timeout=30).leases)


def force(server, pb, backend, statistic, limit, samples, **fields):
    budget = pb.Budget(metric="relative_l2", statistic=statistic, limit=limit, samples=samples)
    request = pb.ForceBackendRequest(backend=backend, budget=budget, **fields)
    return server.operator.ForceBackend(request, timeout=30)


def series(server, name):
    """The series of a metric with their values."""
    found = {}
    for line in page(server.http, "/metrics")[1].splitlines():
        if line.startswith(name + "{") or line.startswith(name + " "):
            labels, value = line[len(name):].rsplit(" ", 1)
            found[labels] = float(value)
    return found


def audit(server, pb):
    return list(server.operator.WatchAudit(pb.WatchAuditRequest(), timeout=30))


def test_a_shadow_finds_how_far_a_backend_is_and_changes_no_bit(server, pb):
    usual, plain = draw(server, pb)
    shadow = start(server, pb, reason="is it good enough?")
    found = lambda: shadow_of(server, pb, shadow.id).statistics
    _, frames, job = draw_until(server, pb, found, "a sample")
    assert np.array_equal(frames, usual), "bit for bit as without it"
    assert job.receipt.fingerprint == plain.receipt.fingerprint
    assert [(e.role, e.ran, e.calls) for e in job.receipt.entries] == [
        (e.role, e.ran, e.calls) for e in plain.receipt.entries]
    ended = server.operator.StopShadow(pb.StopShadowRequest(id=shadow.id), timeout=30)
    assert ended.end == "stopped" and ended.candidate == "SAGE_ATTN" and ended.share_percent == 100
    for found in ended.statistics:
        assert found.samples > 0 and found.baseline != "SAGE_ATTN"
        assert 0 < found.relative_l2_p50 <= found.relative_l2_p99 <= found.relative_l2_max < 1
        assert 0 < found.max_abs and 0 <= found.cosine_distance < 0.5
        assert found.role == "self" and found.sigma_band in BANDS
    counts = series(server, "denoised_shadow_relative_l2_count")
    assert sum(counts.values()) >= sum(found.samples for found in ended.statistics)
    assert all('candidate="SAGE_ATTN"' in labels for labels in counts)
    told = [event for event in audit(server, pb) if event.what == "shadow" and event.subject == shadow.id]
    assert [event.reason for event in told] == ["is it good enough?", "stopped"]
    assert "SAGE_ATTN against what runs" in told[0].new


def test_each_layer_of_a_prompt_is_compared_under_its_own_mask(server, pb):
    shadow = start(server, pb, "REFERENCE")
    found = []
    for number in range(100, 100 + MANY):  # a prompt that was encoded before is not encoded again
        draw(server, pb, number, num_inference_steps=1)
        found = [one for one in shadow_of(server, pb, shadow.id).statistics if one.role == "text_encoder"]
        if found:
            break
    assert found and all(one.relative_l2_max < 1e-3 for one in found), found


def owes_nothing(server, pb, shadow):
    """One call that took longer than expected is paid off by the work that follows."""
    now = shadow_of(server, pb, shadow.id)
    return sum(series(server, "denoised_shadow_seconds_total").values()) <= now.budget * now.device_seconds


def test_what_is_added_stays_within_the_cap(server, pb):
    shadow = start(server, pb, "REFERENCE")
    draw_until(server, pb, lambda: shadow_of(server, pb, shadow.id).statistics, "a sample")
    ended = server.operator.StopShadow(pb.StopShadowRequest(id=shadow.id), timeout=30)
    assert ended.added_seconds > 0 and ended.budget == 0.02

    draw_until(server, pb, lambda: owes_nothing(server, pb, shadow), "the debts' end")
    added, = series(server, "denoised_shadow_seconds_total").values()
    assert shadow_of(server, pb, shadow.id).added_seconds == pytest.approx(added)


def test_a_baseline_by_name_and_parameters(server, pb):
    shadow = start(server, pb, SPARSE, baseline="REFERENCE")
    found, _, _ = draw_until(server, pb, lambda: shadow_of(server, pb, shadow.id).statistics, "a sample")
    assert {one.baseline for one in found} == {"REFERENCE"}


def test_nothing_is_left_after_the_ttl(server, pb):
    request = pb.ShadowRequest(candidate="SAGE_ATTN")
    request.ttl.FromMilliseconds(1)
    shadow = server.operator.Shadow(request, timeout=30)
    eventually(lambda: shadow_of(server, pb, shadow.id).end == "its time was over")
    draw(server, pb)
    assert not shadow_of(server, pb, shadow.id).statistics
    error = error_of(lambda: server.operator.StopShadow(pb.StopShadowRequest(id=shadow.id), timeout=30))
    assert field_and_reason(error)[1] == "SHADOW_NOT_FOUND"


def test_bad_shadows_are_refused_by_their_field(server, pb):
    error = lambda **fields: field_and_reason(error_of(lambda: start(server, pb, **fields)))
    refused = lambda **fields: error(**fields)[0]
    assert refused(candidate="") == "candidate"
    assert refused(candidate="FASTEST") == "candidate"
    assert error(candidate="CUDNN_ATTN")[1] == error(baseline="CUDNN_ATTN")[1] == "BACKEND_UNUSABLE"
    assert refused(baseline="FASTEST") == "baseline"
    assert refused(share_percent=101) == "share_percent"
    assert refused(share_percent=-1) == "share_percent"
    assert refused(reason="x" * 257) == "reason"
    assert error(scope=pb.LeaseScope(model="other"))[1] == "MODEL_NOT_FOUND"
    assert refused(scope=pb.LeaseScope(role="vae")) == "scope.role"
    assert not [shadow for shadow in shadows(server, pb) if not shadow.end]


def test_a_sparse_backend_that_breaks_its_budget_is_rolled_back_and_the_video_is_right(server, pb):
    usual, _ = draw(server, pb)
    idle = start(server, pb, scope=pb.LeaseScope(tenant="nobody"))
    draw_until(server, pb, lambda: owes_nothing(server, pb, idle), "the debts' end")  # so that step 1 can be judged
    fields = pb.ForceBackendRequest()
    fields.parameters.update(PARAMETERS)
    lease = force(server, pb, SPARSE, "p99", 0.001, 200, parameters=fields.parameters, reason="faster")
    before = sum(series(server, "denoised_rollback_total").values())
    _, frames, job = draw_until(server, pb, lambda: not leases(server, pb), "the lease's end")
    note, = [note for note in job.receipt.notes if lease.id in note]
    assert "was undone and done again without" in note and SPARSE in note
    assert "its budget is relative_l2 p99 < 0.001 over 200" in note
    if "step 1 was undone" in note:
        assert np.array_equal(frames, usual), "bit for bit as if the lease had not been"
        assert {entry.ran for entry in job.receipt.entries}.isdisjoint({SPARSE})
    assert score.compare(score.judge(frames), PROMPTS[0][1])["all"]
    rolled = series(server, "denoised_rollback_total")
    assert rolled[f'{{backend="{SPARSE}",cause="budget"}}'] >= 1 and sum(rolled.values()) > before
    told = {event.what: event for event in audit(server, pb) if event.subject == lease.id}
    assert set(told) == {"force", "end", "rollback"}
    for what in ("end", "rollback"):
        assert "budget" in told[what].reason and job.id in told[what].reason
    again, job = draw(server, pb)
    assert np.array_equal(again, usual) and not job.receipt.notes, "the next one never ran under it"


def test_a_lease_within_its_budget_stays_and_shows_what_was_found(server, pb):
    lease = force(server, pb, "SAGE_ATTN", "p99", 0.5, 20)
    judged = lambda: leases(server, pb) and leases(server, pb)[0].judged.samples >= 20
    _, _, job = draw_until(server, pb, judged, "twenty samples")
    kept, = leases(server, pb)
    assert kept.id == lease.id and 0 < kept.judged.at_least < 0.5
    assert "SAGE_ATTN" in {entry.ran for entry in job.receipt.entries} and not job.receipt.notes
    listed = ctl("leases", f"--admin={server.admin}")
    assert "relative_l2 p99 < 0.5 over 20" in listed.stdout and "samples, at 0." in listed.stdout


def test_a_shadow_from_the_command_line(server, pb):
    admin = f"--admin={server.admin}"
    done = ctl("shadow", "SAGE_ATTN", "--share=50%", "--ttl=10m", "--model=shapes", "--reason=a look", admin)
    assert done.returncode == 0, done.stderr
    identity = done.stdout.split()[0]
    assert f"{identity} compares SAGE_ATTN with what runs, model=shapes, 50% of calls" in done.stdout
    assert "no samples yet" in done.stdout and "at most 2% is allowed" in done.stdout
    draw_until(server, pb, lambda: shadow_of(server, pb, identity).statistics, "a sample")
    table = ctl("shadow", admin).stdout
    assert "ROLE" in table and "L2 P99" in table and "BASELINE" in table
    found = next(json.loads(ctl("shadow", "--json", admin).stdout)[key] for key in ("shadows",))
    assert found[0]["id"] == identity and int(found[0]["statistics"][0]["samples"]) > 0
    stopped = ctl("shadow", f"--stop={identity}", admin)
    assert stopped.returncode == 0 and "ended: stopped" in stopped.stdout
    for wrong in (("--stop=shadow-999",), ("--share=0%", "SAGE_ATTN"), ("--share=5%",), ("--stop=a", "SAGE_ATTN"),
                  ("SAGE_ATTN", "--parameters=fast"), ("FASTEST",)):
        done = ctl("shadow", *wrong, admin)
        assert done.returncode in (1, 2) and len(done.stderr.splitlines()) == 1, done.stderr
    assert "shadow" in ctl("audit", admin).stdout


def test_without_time_nothing_is_compared(pb):
    with harness.Server("--shadow_budget=0", repository=harness.ROOT / "model_repository") as plain:
        error = error_of(lambda: start(plain, pb))
        assert field_and_reason(error) == ("", "SHADOWS_OFF")
        error = error_of(lambda: force(plain, pb, "SAGE_ATTN", "p99", 0.02, 200))
        assert field_and_reason(error) == ("", "SHADOWS_OFF") and error.details().startswith("budget: ")
        done = ctl("force", "SAGE_ATTN", "--budget=relative_l2 p99 < 0.02 over 200", f"--admin={plain.admin}")
        assert done.returncode == 1 and "--shadow_budget=0" in done.stderr
