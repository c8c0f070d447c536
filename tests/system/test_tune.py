"""The measured automatic choice on the real programs: tune, restart, explain, jobs, and another server."""

import copy
import json
import signal

import grpc
import pytest

from harness import ROOT, Server, ctl, error_of, eventually, field_and_reason

SHAPES = ROOT / "model_repository"
AUTOMATIC = {"FLASH_ATTN", "TORCH_SDPA", "REFERENCE"}


def tune(server, *arguments):
    done = ctl("tune", f"--admin={server.admin}", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def explained(server, pb, role="self"):
    reply = server.operator.ExplainSelection(pb.ExplainSelectionRequest(height=64, width=64, num_frames=5),
                                             timeout=30)
    return next(one for one in reply.roles if one.role == role)


def ran(server, pb, **fields):
    """What self-attention of a job ran, and why."""
    job = server.wait_for_end(server.submit(num_inference_steps=3, **fields).id)
    assert job.state == pb.SUCCEEDED, job.error
    return [(entry.ran, entry.source) for entry in job.receipt.entries if entry.role == "self"]


def exported(server, pb):
    return json.loads(server.operator.ExportMeasurements(pb.ExportMeasurementsRequest(), timeout=30).json)


def slowed(document, backends, later=1):
    """The same measurements, made some seconds later, as if these backends had been slower."""
    document = copy.deepcopy(document)
    for group in document["groups"]:
        group["measured_at"] += later
        for row in group["rows"]:
            row["seconds"] *= 1000 if row["backend"] in backends else 1
    return json.dumps(document)


def give(server, pb, text):
    return server.operator.ImportMeasurements(pb.Measurements(json=text), timeout=30)


def length(server, pb):
    return explained(server, pb).spec.q_len


def test_tune_restart_and_explain_names_the_row_of_what_a_job_then_runs(pb, tmp_path):
    with Server(f"--state_dir={tmp_path}", repository=SHAPES) as server:
        before = explained(server, pb)
        assert before.source == "automatic" and not before.measured.HasField("seconds")
        lines = tune(server, f"--lengths={length(server, pb)}").splitlines()
        assert any("FLASH_ATTN" in line and " s a call, error " in line for line in lines)
        group = measured_group(exported(server, pb), explained(server, pb))
        changes = [event for event in server.operator.WatchAudit(pb.WatchAuditRequest(), timeout=30)
                   if event.what == "tune"]
        assert {event.subject for event in changes} >= {explained(server, pb).measured.key}
        assert all(event.who and event.new for event in changes)
    with Server(f"--state_dir={tmp_path}", repository=SHAPES) as server:
        role = explained(server, pb)
        exact = {row["backend"]: row for row in group["rows"] if row["backend"] in AUTOMATIC}
        fastest = min(exact.values(), key=lambda row: row["seconds"])
        assert role.would_run == fastest["backend"] and role.source == "automatic"
        assert role.measured.seconds == pytest.approx(fastest["seconds"])
        assert role.measured.relative_l2 == pytest.approx(fastest["relative_l2"])
        assert role.measured.measured_at.seconds == group["measured_at"]
        assert ran(server, pb) == [(fastest["backend"], "automatic")]
        job = server.wait_for_end(server.submit(num_inference_steps=1).id)
        reasons = [entry.reason for entry in job.receipt.entries if entry.role == "self"]
        assert all("the fastest of those measured" in reason and role.measured.key in reason for reason in reasons)
        shown = ctl("explain", f"--admin={server.admin}", "--height=64", "--width=64", "--frames=5").stdout
        assert "measured" in shown and role.measured.key in shown


def measured_group(document, role):
    """The group of self-attention of a job with guidance at the size of `role`."""
    bucket = 1 << (role.spec.q_len - 1).bit_length()
    return next(group for group in document["groups"]
                if (group["key"]["q_len"], group["key"]["kv_len"], group["key"]["rows"]) == (bucket, bucket, 2))


def test_another_server_takes_what_was_written_and_jobs_follow_the_table(pb, tmp_path):
    written = tmp_path / "measured.json"
    with Server() as one, Server() as other:
        tune(one, f"--lengths={length(one, pb)}", f"--write={written}")
        assert json.loads(written.read_text()) == exported(one, pb)
        tune(other, f"--read={written}")
        assert exported(other, pb) == exported(one, pb)
        for later, wanted in enumerate(("TORCH_SDPA", "FLASH_ATTN"), start=1):
            reply = give(other, pb, slowed(exported(one, pb), AUTOMATIC - {wanted}, later))
            assert (reply.ignored, reply.note) == (0, "")
            assert explained(other, pb).would_run == wanted
            assert ran(other, pb) == [(wanted, "automatic")]


def test_auto_error_admits_what_is_near_enough(pb, tmp_path):
    with Server() as server:
        tune(server, f"--lengths={length(server, pb)}", f"--write={tmp_path / 'm.json'}")
        document = json.loads((tmp_path / "m.json").read_text())
    error = next(row["relative_l2"] for row in measured_group(document, spec_of(pb))["rows"]
                 if row["backend"] == "SAGE_ATTN")
    favoured = slowed(document, {row["backend"] for group in document["groups"] for row in group["rows"]}
                      - {"SAGE_ATTN"})
    for limit, expected in ((error * 1.01, True), (error * 0.99, False)):
        with Server(f"--auto_error={limit}") as server:
            give(server, pb, favoured)
            assert (ran(server, pb) == [("SAGE_ATTN", "automatic")]) == expected
    with Server() as server:
        give(server, pb, favoured)
        assert ran(server, pb)[0][0] in AUTOMATIC


def spec_of(pb):
    with Server() as server:
        return explained(server, pb)


def test_rows_of_another_version_or_instruction_set_are_ignored_and_said_to_be(pb, tmp_path):
    with Server(f"--state_dir={tmp_path}", "--cpu_isa=avx2", "--threads=1") as server:
        tune(server, f"--lengths={length(server, pb)}")
        assert explained(server, pb).measured.HasField("seconds")
    with Server(f"--state_dir={tmp_path}", "--cpu_isa=avx2", "--threads=2") as server:
        measured = explained(server, pb).measured
        assert not measured.HasField("seconds") and "another instruction set" in measured.note
        assert "measurements_ignored" in server.read_log()
        document = exported(server, pb)
        for group in document["groups"]:
            group["on"]["version"] = "0.0.1"
        reply = give(server, pb, json.dumps(document))
        assert reply.ignored == reply.taken == len(document["groups"])
        assert "another version (0.0.1)" in reply.note


def test_bad_input_is_named(server, pb):
    for request, named in ((pb.TuneRequest(model="nobody"), ("", "MODEL_NOT_FOUND")),
                           (pb.TuneRequest(lengths=[0]), ("lengths", "")), (pb.TuneRequest(rows=[1 << 40]), ("rows", "")),
                           (pb.TuneRequest(lengths=range(1, 40)), ("lengths", ""))):
        error = error_of(lambda: server.operator.Tune(request, timeout=30))
        assert tuple(said if wanted else "" for said, wanted in zip(field_and_reason(error), named)) == named
    for text in ("", "{", "[]", '{"version": 1}', '{"version": 1, "groups": [{}]}', '{"version": 2, "groups": []}'):
        error = error_of(lambda: give(server, pb, text))
        assert field_and_reason(error)[0] == "json", text
    assert ctl("tune", "--lengths=5,x").returncode == 2
    assert ctl("tune", "--read=/nowhere/at/all", f"--admin={server.admin}").returncode == 1


def test_jobs_go_on_while_a_tune_runs_and_it_ends_with_its_client(server, pb):
    stream = server.operator.Tune(pb.TuneRequest(lengths=[4096, 8192, 2048, 1024], rows=[1, 2, 4]), timeout=300)
    first = next(stream)
    job = server.wait_for_end(server.submit(num_inference_steps=3).id)
    assert job.state == pb.SUCCEEDED
    assert first.done == 1 and first.total > 50
    stream.cancel()
    # The engine is free again: a tune of what is measured at once ends.
    left = list(server.operator.Tune(pb.TuneRequest(lengths=[16], rows=[1]), timeout=120))
    assert left[-1].done == left[-1].total


def test_a_stop_ends_a_tune_at_once_and_keeps_what_was_measured(pb, tmp_path):
    with Server(f"--state_dir={tmp_path}", "--drain_grace=60s") as server:
        stream = server.operator.Tune(pb.TuneRequest(lengths=[16, 8192], rows=[1, 2, 4, 8]), timeout=300)
        while not exported(server, pb)["groups"]:
            next(stream)
        kept = exported(server, pb)["groups"]
        server.process.send_signal(signal.SIGTERM)
        error = error_of(lambda: list(stream))
        assert (error.code(), field_and_reason(error)[1]) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert server.process.wait(timeout=30) == 0
    with Server(f"--state_dir={tmp_path}") as server:
        again = exported(server, pb)["groups"]
        assert all(group in again for group in kept)


def test_when_idle_a_server_measures_what_a_job_asked_for(pb):
    with Server("--tune_when_idle") as server:
        assert not explained(server, pb).measured.HasField("seconds")
        ran(server, pb)
        eventually(lambda: explained(server, pb).measured.HasField("seconds"), timeout=120, what="a measurement")
        fastest = explained(server, pb).would_run
        assert ran(server, pb) == [(fastest, "automatic")]
        changes = [event for event in server.operator.WatchAudit(pb.WatchAuditRequest(), timeout=30)
                   if event.what == "tune"]
        assert changes and all(event.who == "server" and event.reason == "measured when idle" for event in changes)


def test_a_table_that_changes_meanwhile_changes_no_bit_of_what_has_begun(pb, tmp_path):
    wanted = dict(seed=5, num_inference_steps=150, formats=[pb.NPY])

    def end(job):
        job = server.wait_for_end(job.id)
        assert job.state == pb.SUCCEEDED, job.error
        return ({entry.ran for entry in job.receipt.entries if entry.role == "self"}, job.receipt.fingerprint,
                server.fetch(job.id, pb.NPY))

    with Server() as server:
        tune(server, f"--lengths={length(server, pb)}")
        document = exported(server, pb)
        give(server, pb, slowed(document, AUTOMATIC - {"FLASH_ATTN"}, later=1))
        alone = end(server.submit(**wanted))
        begun = server.submit(**wanted)
        server.wait_until(begun.id, lambda job: job.step > 0)
        give(server, pb, slowed(document, AUTOMATIC - {"TORCH_SDPA"}, later=2))
        beside = server.submit(**wanted)  # shares forwards with the one that has begun
        begun, beside = end(begun), end(beside)
        assert begun == alone and begun[0] == {"FLASH_ATTN"}
        assert beside == end(server.submit(**wanted)) and beside[0] == {"TORCH_SDPA"}
