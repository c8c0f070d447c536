"""Models that are loaded again, and taken away, under a server that works."""

import concurrent.futures
import json
import os
import shutil
import signal
import struct

import pytest
from safetensors.torch import load_file, save_file

from harness import ROOT, Server, ctl, error_of, eventually, field_and_reason, page

SHAPES = ROOT / "model_repository/shapes"
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
# Enough steps to stand in the middle of, however slow the machine and whatever loads beside them.
LONG = dict(num_frames=17, num_inference_steps=120, seed=3)
SHORT = dict(num_frames=5, num_inference_steps=4, seed=3)


@pytest.fixture
def repository(tmp_path):
    """A copy of the shipped model, to be changed at will."""
    shutil.copytree(SHAPES, tmp_path / "repository/shapes")
    return tmp_path / "repository"


def put(path, data):
    """As a careful operator does: the new file is whole when it takes the old one's place."""
    fresh = path.with_name(path.name + ".fresh")
    fresh.write_bytes(data)
    os.replace(fresh, path)


def change_tensors(folder, change):
    path = folder / TRANSFORMER
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path.with_suffix(".fresh"))
    os.replace(path.with_suffix(".fresh"), path)


def put_other_weights(folder):
    change_tensors(folder, lambda tensors: tensors.update({"proj_out.weight": tensors["proj_out.weight"] * 0.5}))


def load(server, pb, name="shapes", **fields):
    return server.operator.LoadModel(pb.LoadModelRequest(name=name, **fields), timeout=300)


def finished(server, pb, job_id):
    job = server.wait_for_end(job_id)
    assert job.state == pb.SUCCEEDED, job
    return job, server.fetch(job_id, pb.NPY)


def drawn(server, pb, **fields):
    return finished(server, pb, server.submit(formats=[pb.NPY], **(SHORT | fields)).id)[1]


def served(server, pb):
    return server.models.ListModels(pb.ListModelsRequest(), timeout=30)


def audited(server, pb):
    return [event for event in server.operator.WatchAudit(pb.WatchAuditRequest(), timeout=30)
            if event.what in ("load_model", "unload_model")]


# ---- bad folders


def cut(folder):
    path = folder / TRANSFORMER
    put(path, path.read_bytes()[:100000])
    return TRANSFORMER, "data reach past the end of the file"


def without_a_tensor(folder):
    change_tensors(folder, lambda tensors: tensors.pop("proj_out.weight"))
    return TRANSFORMER, "tensor 'proj_out.weight' is missing"


def with_a_wrong_key(folder):
    path = folder / "denoised.json"
    put(path, json.dumps(json.loads(path.read_text()) | {"colour": "red"}).encode())
    return "denoised.json", "colour"


def a_pointer(folder):
    put(folder / TRANSFORMER, f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n".encode())
    return TRANSFORMER, "pointer of Git LFS"


def test_a_bad_folder_is_named_and_the_model_serves_on_with_the_same_bits(repository, pb):
    folder = repository / "shapes"
    with Server(repository=repository) as server:
        before, digest = drawn(server, pb), served(server, pb).models[0].model_digest
        for spoil in (cut, without_a_tensor, with_a_wrong_key, a_pointer):
            file, rule = spoil(folder)
            error = error_of(lambda: load(server, pb, reason="a rehearsal"))
            assert error.code().name == "FAILED_PRECONDITION", error
            assert file in error.details() and rule in error.details()
            listed = served(server, pb)
            assert [model.model_digest for model in listed.models] == [digest]
            assert [(failed.name, failed.message) for failed in listed.failed] == [("shapes", error.details())]
            assert field_and_reason(error)[1] == listed.failed[0].reason
            status, ready = page(server.http, "/readyz")
            assert status == 200 and "not loaded, an earlier one serves: shapes" in ready
            failures = [line for line in page(server.http, "/metrics")[1].splitlines()
                        if line.startswith("denoised_model_load_failed{")]
            assert failures == [f'denoised_model_load_failed{{model="shapes",reason="{listed.failed[0].reason}"}} 1']
            row = audited(server, pb)[-1]
            assert (row.what, row.subject, row.old, row.reason) == ("load_model", "shapes", digest, "a rehearsal")
            assert row.new.startswith("not loaded: ") and file in row.new
            assert drawn(server, pb) == before
            shutil.rmtree(folder)
            shutil.copytree(SHAPES, folder)
        reply = load(server, pb)
        assert reply.unchanged and reply.model.model_digest == digest
        assert not served(server, pb).failed and "denoised_models_failed 0" in page(server.http, "/metrics")[1]
        assert "model_failed" in server.read_log()


def test_a_folder_that_is_not_there_is_not_found(repository, pb):
    with Server(repository=repository) as server:
        for name in ("nobody", "../shapes", "/etc"):
            error = error_of(lambda: load(server, pb, name=name))
            assert error.code().name == "NOT_FOUND" and field_and_reason(error)[1] == "MODEL_NOT_FOUND"
        assert error_of(lambda: load(server, pb, name="")).code().name == "INVALID_ARGUMENT"
        assert not served(server, pb).failed and not audited(server, pb)


# ---- good ones


def test_running_jobs_end_with_the_old_weights_and_new_ones_have_the_new(repository, pb):
    with Server(repository=repository) as server:
        first, wanted = finished(server, pb, server.submit(formats=[pb.NPY], **LONG).id)
        short = drawn(server, pb)
        running = server.submit(formats=[pb.NPY], **LONG)
        server.wait_until(running.id, lambda job: job.step >= 1)
        put_other_weights(repository / "shapes")
        reply = load(server, pb)
        assert not reply.unchanged and reply.on_previous == 1
        assert reply.previous_model_digest == first.receipt.model_digest != reply.model.model_digest
        assert reply.model.is_default
        changed = drawn(server, pb)
        assert changed != short, "a new job has the old weights"
        job, frames = finished(server, pb, running.id)
        assert job.receipt.model_digest == first.receipt.model_digest
        assert frames == wanted and job.receipt.fingerprint == first.receipt.fingerprint
        assert drawn(server, pb) == changed
        shutil.rmtree(repository / "shapes")
        shutil.copytree(SHAPES, repository / "shapes")
        assert load(server, pb).model.model_digest == first.receipt.model_digest
        assert drawn(server, pb) == short
    with Server(repository=repository) as server:  # as one that never swapped
        assert drawn(server, pb) == short


def test_what_was_kept_of_a_suspended_job_is_of_other_weights(repository, pb, tmp_path):
    with Server(f"--state_dir={tmp_path}/state", repository=repository) as server:
        job_id = server.submit(formats=[pb.NPY], **LONG).id
        server.wait_until(job_id, lambda job: job.step >= 2)
        server.generation.SuspendJob(pb.SuspendJobRequest(job_id=job_id), timeout=30)
        server.wait_until(job_id, lambda job: job.state == pb.SUSPENDED)
        put_other_weights(repository / "shapes")
        digest = load(server, pb).model.model_digest
        server.generation.ResumeJob(pb.ResumeJobRequest(job_id=job_id), timeout=30)
        job, _ = finished(server, pb, job_id)
        assert job.receipt.model_digest == digest
        assert any("begun again from step 0" in note and digest in note for note in job.receipt.notes)


def test_a_model_is_taken_away_and_brought_back(repository, pb):
    shutil.copytree(SHAPES, repository / "other")
    with Server(repository=repository) as server:
        where = f"--admin={server.admin}"
        error = error_of(lambda: server.operator.UnloadModel(pb.UnloadModelRequest(name="shapes"), timeout=60))
        assert (error.code().name, field_and_reason(error)[1]) == ("FAILED_PRECONDITION", "MODEL_IS_DEFAULT")
        running = server.submit(model="other", **(LONG | dict(num_inference_steps=1000)))
        server.wait_until(running.id, lambda job: job.step >= 1)
        refused = ctl("unload", "other", where)
        assert refused.returncode == 1 and "1 runs" in refused.stderr and "force" in refused.stderr
        done = ctl("unload", "other", "--force", "--reason=room", where)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "other: unloaded, 1 jobs and 0 sessions ended\n"
        ended = server.get(running.id)
        assert ended.state == pb.FAILED and ended.error.reason == "MODEL_UNLOADED"
        assert [model.name for model in served(server, pb).models] == ["shapes"]
        assert error_of(lambda: server.submit(model="other")).code().name == "NOT_FOUND"
        done = ctl("load", "other", where)
        assert done.returncode == 0 and done.stdout.startswith("other: serves "), done.stderr
        drawn(server, pb, model="other")
        assert [row.what for row in audited(server, pb)] == ["unload_model", "load_model"]
        ctl("unload", "other", where)
        done = ctl("unload", "shapes", where)
        assert done.returncode == 0, done.stderr
        assert page(server.http, "/readyz") == (503, "no model is loaded\n")
        assert ctl("load", "shapes", where).returncode == 0
        eventually(lambda: page(server.http, "/readyz")[0] == 200)


# ---- a long load


def put_long_file(path, size=8 << 30):
    """The same tensors, and one that nobody reads, of holes: a file that takes long to hash."""
    data = path.read_bytes()
    length, = struct.unpack("<Q", data[:8])
    header, end = json.loads(data[8:8 + length]), len(data) - 8 - length
    header["padding"] = {"dtype": "F32", "shape": [size // 4], "data_offsets": [end, end + size]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    fresh = path.with_suffix(".fresh")
    fresh.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length:])
    os.truncate(fresh, 8 + len(text) + end + size)
    os.replace(fresh, path)


def test_a_long_load_holds_nothing_up_and_a_stop_ends_it(repository, pb):
    with Server("--max_memory=none", "--drain_grace=60s", repository=repository) as server:
        put_long_file(repository / "shapes" / TRANSFORMER)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            def reason_of_load(name):
                error = error_of(lambda: load(server, pb, name))
                return field_and_reason(error)[1], error.code().name

            def until_it_is_its_turn():
                while True:
                    reason, code = reason_of_load("shapes")
                    if reason != "MODEL_CHANGING":
                        return code

            loading = pool.submit(until_it_is_its_turn)

            def under_way():  # what is asked for is nowhere, and refused at once where nothing is
                return reason_of_load("nowhere")[0] == "MODEL_CHANGING"

            eventually(under_way, what="the load")
            drawn(server, pb)
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(timeout=20)
            assert server.process.returncode == 0
            assert loading.result() in ("UNAVAILABLE", "CANCELLED")


def test_both_must_fit(repository, pb):
    with Server("--max_memory=16GiB", repository=repository) as server:
        put_long_file(repository / "shapes" / TRANSFORMER, 32 << 30)
        error = error_of(lambda: load(server, pb))
        assert error.code().name == "RESOURCE_EXHAUSTED" and field_and_reason(error)[1] == "MEMORY"
        assert "loading model shapes needs 32" in error.details() and "there are 16" in error.details()
        assert "unload" in error.details()
        drawn(server, pb)
        assert not served(server, pb).failed
