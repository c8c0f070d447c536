"""Leases with scopes, schedules, explanations: on the real programs, with the checkpoint that ships."""

import json
import signal
import subprocess

import grpc
import pytest
from google.protobuf import json_format

from harness import BIN, ROOT, Server, clean_environment, ctl, error_of, eventually, field_and_reason

SIZES = dict(height=64, width=64, num_frames=5)


@pytest.fixture(scope="module")
def server():
    with Server(repository=ROOT / "model_repository") as running:
        yield running


@pytest.fixture(scope="module")
def layers(server, pb):
    """How many there are."""
    return server.models.ListModels(pb.ListModelsRequest(), timeout=30).models[0].num_layers


def submit(server, steps=8, **fields):
    return server.submit("a red circle moving left", num_inference_steps=steps, seed=3, **fields)


def run(server, steps=8, **fields):
    job = server.wait_for_end(submit(server, steps, **fields).id)
    assert job.state == 3, job.error
    return job


def grid(job, steps, layers, role="self"):
    """{(step, layer): entry} of a role; every one exactly once."""
    cells = {}
    for entry in job.receipt.entries:
        if entry.role != role:
            continue
        first, last = (entry.layers.first, entry.layers.last) if entry.HasField("layers") else (0, layers - 1)
        for step in range(entry.first_step, entry.last_step + 1):
            for layer in range(first, last + 1):
                assert (step, layer) not in cells
                cells[step, layer] = entry
    assert set(cells) == {(s, l) for s in range(steps) for l in range(layers)}
    return cells


def force(server, pb, backend="REFERENCE", **fields):
    return server.operator.ForceBackend(pb.ForceBackendRequest(backend=backend, **fields), timeout=30)


def listed(server, pb):
    return server.operator.ListLeases(pb.ListLeasesRequest(), timeout=30)


def explain(server, pb, role="self", **fields):
    query = pb.ExplainSelectionRequest(**(SIZES | fields))
    return next(r for r in server.operator.ExplainSelection(query, timeout=30).roles if r.role == role)


def admin(server, *words):
    return ctl(*words, f"--admin={server.admin}")


# ---- scopes

def test_a_lease_of_some_layers_shows_exactly_so(server, pb, layers):
    lease = force(server, pb, scope=pb.LeaseScope(layers=pb.Interval(first=1, last=2)))
    cells = grid(run(server), 8, layers)
    assert {cell for cell, entry in cells.items() if entry.ran == "REFERENCE"} == {
        (step, layer) for step in range(8) for layer in (1, 2)}
    assert {entry.lease_id for (_, layer), entry in cells.items() if layer in (1, 2)} == {lease.id}


def test_a_lease_of_some_steps_and_one_role_shows_exactly_so(server, pb, layers):
    force(server, pb, scope=pb.LeaseScope(role="cross", steps=pb.Interval(first=2, last=4)))
    job = run(server)
    assert all(entry.ran != "REFERENCE" for entry in grid(job, 8, layers).values())
    cross = grid(job, 8, layers, "cross")
    assert {step for (step, _), entry in cross.items() if entry.ran == "REFERENCE"} == {2, 3, 4}
    assert all(not entry.HasField("layers") for entry in job.receipt.entries), "all layers are not named"


def test_a_lease_of_noise_levels_shows_in_the_steps_that_have_them(server, pb, layers):
    force(server, pb, scope=pb.LeaseScope(sigma=pb.SigmaRange(low=0.9, high=1)))
    cells = grid(run(server, steps=20), 20, layers)
    forced = sorted({step for (step, _), entry in cells.items() if entry.ran == "REFERENCE"})
    assert forced == list(range(len(forced))) and 0 < len(forced) < 20, "the first ones: noise falls"


def test_a_force_in_the_middle_of_a_job_shows_from_the_next_step_on(server, pb):
    steps = 400
    job = submit(server, steps)
    server.wait_until(job.id, lambda j: j.step >= 3)
    force(server, pb, scope=pb.LeaseScope(job_id=job.id))
    forced_at = server.get(job.id).step
    done = server.wait_for_end(job.id, timeout=500)
    first, second = [entry for entry in done.receipt.entries if entry.role == "self"]
    assert first.first_step == 0 and second.last_step == steps - 1 and second.ran == "REFERENCE"
    assert 3 <= second.first_step <= forced_at + 1 and first.last_step + 1 == second.first_step


def test_whose_work_it_is_decides(server, pb):
    force(server, pb, scope=pb.LeaseScope(tenant="studio"))
    ran = {tenant: {entry.ran for entry in run(server, 2, tenant=tenant).receipt.entries if entry.role == "self"}
           for tenant in ("studio", "other", "")}
    assert ran["studio"] == {"REFERENCE"} and ran["other"] == ran[""] != {"REFERENCE"}


def test_the_narrower_lease_decides_and_its_end_gives_the_wider_one_back(server, pb):
    narrow = force(server, pb, scope=pb.LeaseScope(tenant="studio"))
    force(server, pb, backend="TORCH_SDPA")
    ran = lambda: {e.ran for e in run(server, 2, tenant="studio").receipt.entries if e.role == "self"}  # noqa: E731
    assert ran() == {"REFERENCE"}, "newer is not narrower"
    server.operator.ReleaseForce(pb.ReleaseForceRequest(lease_id=narrow.id), timeout=30)
    assert ran() == {"TORCH_SDPA"}


def test_a_canary_holds_a_share_of_the_jobs_and_a_larger_one_all_of_those(server, pb):
    def forced(percent):
        lease = force(server, pb, scope=pb.LeaseScope(share_percent=percent))
        hit = {job_id for job_id in jobs if explain(server, pb, job_id=job_id).source == "force"}
        server.operator.ReleaseForce(pb.ReleaseForceRequest(lease_id=lease.id), timeout=30)
        return hit

    jobs = [f"{number:032x}" for number in range(500)]
    small, large = forced(20), forced(60)
    assert 80 <= len(small) <= 120 and small < large and 270 <= len(large) <= 330
    force(server, pb, scope=pb.LeaseScope(share_percent=50))
    for _ in range(12):
        job = run(server, 1)
        entry = next(e for e in job.receipt.entries if e.role == "self")
        assert (entry.source == "force") == (explain(server, pb, job_id=job.id).source == "force")


def test_a_pinned_job_is_not_touched_by_a_force(server, pb):
    job = submit(server, 300, pin_backends=True)
    server.wait_until(job.id, lambda j: j.step >= 2)
    force(server, pb, scope=pb.LeaseScope(job_id=job.id))
    assert explain(server, pb, job_id=job.id).would_run != "REFERENCE"
    done = server.wait_for_end(job.id)
    assert {entry.source for entry in done.receipt.entries if entry.role == "self"} == {"automatic"}


def test_a_force_that_can_serve_nothing_in_scope_is_refused_with_what_is_usable(server, pb, layers):
    cases = [
        (dict(backend="VIDEO_SPARSE_ATTN", scope=pb.LeaseScope(role="cross")),
         grpc.StatusCode.FAILED_PRECONDITION, "TORCH_SDPA"),
        (dict(scope=pb.LeaseScope(layers=pb.Interval(first=layers, last=layers + 3))),
         grpc.StatusCode.FAILED_PRECONDITION, f"has {layers} layers"),
        (dict(scope=pb.LeaseScope(model="absent")), grpc.StatusCode.NOT_FOUND, "shapes"),
        (dict(scope=pb.LeaseScope(job_id="absent")), grpc.StatusCode.NOT_FOUND, "absent")]
    for fields, code, part in cases:
        error = error_of(lambda: force(server, pb, **fields))
        assert error.code() == code and part in error.details(), fields
    assert not listed(server, pb).leases


def test_changes_compare_the_generation_first(server, pb):
    lease = force(server, pb)
    seen = listed(server, pb).generation
    assert lease.generation == seen
    other = force(server, pb, expected_generation=seen)
    for change in (lambda: force(server, pb, expected_generation=seen),
                   lambda: server.operator.RenewLease(
                       pb.RenewLeaseRequest(lease_id=lease.id, expected_generation=seen), timeout=30),
                   lambda: server.operator.ReleaseForce(
                       pb.ReleaseForceRequest(all=True, expected_generation=seen), timeout=30)):
        error = error_of(change)
        assert error.code() == grpc.StatusCode.ABORTED
        assert field_and_reason(error)[1] == "GENERATION_MISMATCH"
    assert [one.id for one in listed(server, pb).leases] == [other.id, lease.id]


def test_a_renewed_lease_lasts_longer(server, pb):
    request = pb.ForceBackendRequest(backend="REFERENCE")
    request.ttl.FromSeconds(5)
    lease = server.operator.ForceBackend(request, timeout=30)
    renew = pb.RenewLeaseRequest(lease_id=lease.id)
    renew.ttl.FromSeconds(3600)
    renewed = server.operator.RenewLease(renew, timeout=30)
    assert renewed.remaining.ToSeconds() > 3000 and renewed.generation > lease.generation
    renew.ttl.FromMilliseconds(50)
    server.operator.RenewLease(renew, timeout=30)
    eventually(lambda: not listed(server, pb).leases, what="the end of the lease")
    assert error_of(lambda: server.operator.RenewLease(renew, timeout=30)).code() == grpc.StatusCode.NOT_FOUND


# ---- schedules

SCHEDULE = [{"steps": "0-2", "layers": "0-1", "role": "self", "backend": "REFERENCE"},
            {"steps": "3", "role": "self", "backend": "TORCH_SDPA"}]


def assert_scheduled(job, layers):
    for (step, layer), entry in grid(job, 8, layers).items():
        rule = 0 if step < 3 and layer < 2 else 1 if step == 3 else None
        assert (entry.rule if entry.HasField("rule") else None) == rule, (step, layer)
        assert (entry.source == "request") == (rule is not None)
        assert entry.asked == ("" if rule is None else SCHEDULE[rule]["backend"])
        if rule is not None:
            assert entry.ran == SCHEDULE[rule]["backend"]


def test_a_schedule_holds_from_a_file_and_from_the_command_line(server, pb, layers, tmp_path):
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps(SCHEDULE))
    for given in (path, json.dumps(SCHEDULE)):
        done = ctl("submit", "a red circle moving left", "--height=64", "--width=64", "--frames=5", "--steps=8",
                   f"--schedule={given}", f"--server={server.public}")
        assert done.returncode == 0, done.stderr
        assert_scheduled(server.wait_for_end(done.stdout.strip()), layers)
    done = ctl("generate", "p", "-o", tmp_path / "a.npy", "--height=64", "--width=64", "--frames=5", "--steps=8",
               f"--schedule={path}", f"--server={server.public}")
    assert "steps 0-2, layers 0-1" in done.stdout and "rule 0 of the request" in done.stdout, done.stderr
    done = ctl("run", "p", "-o", tmp_path / "b.npy", "--height=64", "--width=64", "--frames=5", "--steps=8",
               f"--schedule={path}", f"--model_repository={ROOT / 'model_repository'}", "--threads=1")
    assert "steps 0-2, layers 0-1" in done.stdout, done.stderr


def rule(pb, **fields):
    return pb.AttentionRule(**({"backend": "REFERENCE"} | fields))


def test_a_rule_is_refused_by_its_index_and_the_reason(server, pb, layers):
    bad = {
        "backend": rule(pb, backend="FAST"),
        "role": rule(pb, role="vae"),
        "layers": rule(pb, layers=pb.Interval(first=layers, last=layers)),
        "steps": rule(pb, steps=pb.Interval(first=8, last=9)),
        "sigma": rule(pb, sigma=pb.SigmaRange(low=2, high=1)),
        "parameters.x": rule(pb, backend="VIDEO_SPARSE_ATTN", parameters={"x": 1}),
    }
    for field, second in bad.items():
        options = pb.AttentionOptions(schedule=[rule(pb), second])
        error = error_of(lambda: submit(server, attention=options))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, field
        assert field_and_reason(error)[0] == f"attention.schedule[1].{field}"
    strict = pb.AttentionOptions(schedule=[rule(pb), rule(pb, backend="NO_ATTENTION", policy=pb.STRICT)])
    error = error_of(lambda: submit(server, attention=strict))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION and "attention.schedule[1]" in error.details()
    assert field_and_reason(error)[1] == "BACKEND_REFUSED"


def test_two_schedules_are_two_fingerprints_and_one_key_is_one_schedule(server, pb):
    def made(schedule, **fields):
        return run(server, 4, attention=pb.AttentionOptions(schedule=schedule), **fields)

    whole, part = [rule(pb)], [rule(pb, layers=pb.Interval(first=0, last=1))]
    prints = [made(schedule).receipt.fingerprint for schedule in (whole, part, whole)]
    assert prints[0] == prints[2] != prints[1]
    forced = force(server, pb, scope=pb.LeaseScope(layers=pb.Interval(first=0, last=1)))
    assert run(server, 4).receipt.fingerprint == prints[1], "who chose it does not count"
    server.operator.ReleaseForce(pb.ReleaseForceRequest(lease_id=forced.id), timeout=30)
    first = made(whole, idempotency_key="k")
    again = submit(server, 4, attention=pb.AttentionOptions(schedule=whole), idempotency_key="k")
    assert again.id == first.id
    error = error_of(lambda: submit(server, 4, attention=pb.AttentionOptions(schedule=part), idempotency_key="k"))
    assert error.code() == grpc.StatusCode.ALREADY_EXISTS


# ---- explanations

def test_what_a_lease_would_do_is_what_it_then_does(server, pb, layers):
    scopes = [None, pb.LeaseScope(layers=pb.Interval(first=1, last=2)),
              pb.LeaseScope(steps=pb.Interval(first=0, last=1)), pb.LeaseScope(tenant="nobody"),
              pb.LeaseScope(role="cross")]
    for scope in scopes:
        request = pb.ForceBackendRequest(backend="REFERENCE", scope=scope)
        said = {}
        for step in range(4):
            for part in explain(server, pb, step=step, what_if=request).layers:
                said |= {(step, layer): part.would_run for layer in range(part.layers.first, part.layers.last + 1)}
        lease = server.operator.ForceBackend(request, timeout=30)
        cells = grid(run(server, 4), 4, layers)
        server.operator.ReleaseForce(pb.ReleaseForceRequest(lease_id=lease.id), timeout=30)
        assert {cell: entry.ran for cell, entry in cells.items()} == said, scope
    assert not listed(server, pb).leases


def test_every_wish_is_told_in_order(server, pb):
    elsewhere = force(server, pb, scope=pb.LeaseScope(tenant="studio"))
    granted = force(server, pb, backend="TORCH_SDPA")
    options = pb.AttentionOptions(backend="REFERENCE", schedule=[rule(pb, steps=pb.Interval(first=5, last=9))])
    wishes = explain(server, pb, attention=options).wishes
    told = [(w.source, w.lease_id, w.outcome) for w in wishes if w.source != "automatic"]
    assert told == [("force", elsewhere.id, "elsewhere"), ("force", granted.id, "granted"),
                    ("request", "", "elsewhere"), ("request", "", "hidden")]
    assert wishes[0].scope == "tenant=studio" and "tenant studio" in wishes[0].reason
    assert wishes[2].rule == 0 and "steps 5-9" in wishes[2].reason
    assert {w.outcome for w in wishes if w.source == "automatic"} == {"hidden"}


def test_the_explanation_of_a_refusal_is_in_its_details(server, pb):
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status
    options = pb.AttentionOptions(backend="NO_ATTENTION", policy=pb.STRICT)
    role = explain(server, pb, attention=options)
    error = error_of(lambda: submit(server, attention=options))
    assert error.details() == role.error
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in rpc_status.from_call(error).details)
    lines = [f"{w.source} {w.backend}: {w.outcome}: {w.reason}" for w in role.wishes]
    assert info.reason == "BACKEND_REFUSED" and info.metadata["explanation"].split("\n") == lines


# ---- the client

def test_an_operators_leases_from_the_command_line(server, pb):
    done = admin(server, "force", "reference", "--model=shapes", "--role=self", "--layers=0-1", "--steps=1-2",
                 "--sigma=0.1-1", "--tenant=studio", "--share=20%", "--ttl=10m", "--reason=looking")
    assert done.returncode == 0, done.stderr
    scope = "tenant=studio share=20% model=shapes layers=0-1 steps=1-2 sigma=0.1-1 role=self"
    assert scope in done.stdout
    lease, = listed(server, pb).leases
    table = admin(server, "leases")
    assert scope in table.stdout and f"generation {lease.generation}" in table.stderr
    stale = admin(server, "force", "REFERENCE", f"--generation={lease.generation - 1}")
    assert stale.returncode == 1 and "ABORTED" in stale.stderr
    assert "s left" in table.stdout and "looking" in table.stdout
    renewed = admin(server, "renew", lease.id, "--ttl=2h")
    assert renewed.returncode == 0 and "7200 s left" in renewed.stdout
    assert admin(server, "release", lease.id, "--generation=0").returncode == 1
    assert admin(server, "release", lease.id, f"--generation={listed(server, pb).generation}").returncode == 0
    watched = admin(server, "force", "REFERENCE", "--budget=relative_l2 p99 < 0.02 over 200")
    assert watched.returncode == 0 and "while relative_l2 p99 < 0.02 over 200" in watched.stdout
    assert admin(server, "release", watched.stdout.split()[0]).returncode == 0


@pytest.mark.parametrize("words, part", [
    (("force", "REFERENCE", "--layers=5-1"), "--layers"), (("force", "REFERENCE", "--steps=x"), "--steps"),
    (("force", "REFERENCE", "--sigma=0.9-0.1"), "--sigma"), (("force", "REFERENCE", "--share=0%"), "--share"),
    (("force", "REFERENCE", "--role=vae"), "--role"), (("force", "REFERENCE", "--budget=fast"), "--budget"),
    (("force", "REFERENCE", "--generation=x"), "--generation"), (("renew", "force-1", "--ttl=soon"), "--ttl"),
    (("force", "REFERENCE", "--scope=server"), "--scope"), (("renew",), "ID"),
    (("submit", "p", "--schedule=/no/file"), "--schedule"), (("submit", "p", "--schedule=[{}]"), "--schedule[0]"),
    (("submit", "p", '--schedule=[{"backend": "REFERENCE", "layers": "x"}]'), "--schedule[0]"),
    (("explain", "--what_if_layers=0-5"), "--what_if_force"), (("explain", "--why_not=FAST"), "--why_not"),
    (("explain", "--layer=-1"), "--layer")])
def test_wrong_use_names_the_flag(words, part):
    done = ctl(*words)
    assert done.returncode == 2 and part in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_explain_is_a_table_and_why_not_is_a_line(server, pb):
    lease = force(server, pb, scope=pb.LeaseScope(layers=pb.Interval(first=0, last=1)))
    table = admin(server, "explain", "--height=64", "--width=64", "--frames=5").stdout
    self_part = table.split("cross:")[0]
    assert "layers 0-1: REFERENCE" in self_part and f"force {lease.id}" in self_part and "granted" in self_part
    one = admin(server, "explain", "--layer=0", "--role=self").stdout
    assert one.startswith("self: REFERENCE\n") and "cross:" not in one
    what_if = admin(server, "explain", "--what-if-force=TORCH_SDPA", "--what-if-tenant=studio", "--tenant=studio",
                    "--layer=0").stdout
    assert "what if      TORCH_SDPA would run instead of REFERENCE" in what_if

    def why_not(name, *flags):
        done = admin(server, "explain", f"--why-not={name}", *flags)
        assert done.returncode == 0 and done.stdout.count("\n") == 1, done
        return done.stdout

    assert "NO_ATTENTION does not run for self-attention: the layer does not list it" in why_not("NO_ATTENTION")
    assert "REFERENCE runs for self-attention" in why_not("REFERENCE", "--layer=0")
    assert "does not run for self-attention" in why_not("REFERENCE", "--layer=3") and "layers 0-1" in why_not(
        "REFERENCE", "--layer=3")
    assert "came first" in why_not("TORCH_SDPA", "--layer=0")
    unable = why_not("CUDNN_ATTN", "--layer=0")
    assert "could serve" not in unable and "came first" not in unable, "what is unable is hidden by nothing"


def test_hold_with_a_scope_ends_when_its_client_is_killed(server, pb):
    process = subprocess.Popen([str(BIN / "denoisectl"), "hold", "REFERENCE", "--tenant=studio",
                                f"--admin={server.admin}"], stdout=subprocess.PIPE, text=True,
                               env=clean_environment())
    assert "tenant=studio" in process.stdout.readline()
    lease, = listed(server, pb).leases
    assert lease.held and lease.scope == "tenant=studio"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    eventually(lambda: not listed(server, pb).leases, what="the end of the hold")


def test_lease_metrics_have_the_kinds_of_scopes_that_are_in_use(server, pb):
    from harness import page
    series = 'denoised_lease_active{backend="REFERENCE",scope="tenant+steps"}'
    assert series not in page(server.http, "/metrics")[1]
    lease = force(server, pb, scope=pb.LeaseScope(tenant="studio", steps=pb.Interval(first=0, last=3)))
    assert f"{series} 1" in page(server.http, "/metrics")[1]
    server.operator.ReleaseForce(pb.ReleaseForceRequest(lease_id=lease.id), timeout=30)
    assert series not in page(server.http, "/metrics")[1]


def test_json_of_a_lease_is_its_message(server, pb):
    done = admin(server, "force", "REFERENCE", "--layers=2", "--json")
    lease = json_format.Parse(done.stdout, pb.Lease())
    assert lease.where.layers.first == lease.where.layers.last == 2
    assert lease.id == listed(server, pb).leases[0].id
