"""What is garbage fails by name, what cannot fit is refused, and long steps can be left."""

import json
import re
import shutil
import signal
import subprocess
import time

import grpc
import numpy
import pytest
from safetensors.numpy import load_file, save_file

from harness import BIN, ROOT, Server, error_of, field_and_reason, memory

SHAPES = ROOT / "model_repository/shapes"
LONG = dict(height=256, width=256, num_frames=65, num_inference_steps=3)  # minutes a step


@pytest.fixture(scope="module")
def shapes():
    with Server("--max_memory=1500MiB", repository=SHAPES) as running:
        yield running


@pytest.fixture()
def broken(tmp_path):
    """A copy of the model that ships, for a test to break."""
    folder = tmp_path / "shapes"
    shutil.copytree(SHAPES, folder)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    (folder / "SHA256SUMS").unlink(missing_ok=True)  # it would find the change first
    return folder


def fill(path, name, value):
    tensors = load_file(path)
    tensors[name] = numpy.full_like(tensors[name], value)
    save_file(tensors, path)


def edit(path, **changes):
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def refusal_at_load(folder):
    command = [BIN / "denoised", f"--model_repository={folder}", "--listen=127.0.0.1:0",
               "--admin_listen=127.0.0.1:0", "--http_listen=127.0.0.1:0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    return done.stderr


# ---- garbage


@pytest.mark.parametrize("value", [numpy.nan, numpy.inf])
def test_a_decoder_that_gives_no_numbers_fails_its_job_and_names_the_frames(broken, pb, value):
    fill(broken / "vae/diffusion_pytorch_model.safetensors", "decoder.conv_out.bias", value)
    with Server(repository=broken) as server:
        for artifact_format in (pb.MP4, pb.NPY):
            job = server.submit(num_frames=9, num_inference_steps=1, formats=[artifact_format])
            job = server.wait_for_end(job.id)
            assert job.state == pb.FAILED
            assert job.error.reason == "NON_FINITE"
            assert re.search(r"not finite in frame 1 of 9", job.error.message)
            assert job.stage == "decode" and not job.artifacts


def test_a_text_encoder_that_gives_no_numbers_fails_its_job(broken, pb):
    fill(broken / "text_encoder/model.safetensors", "encoder.final_layer_norm.weight", numpy.nan)
    with Server(repository=broken) as server:
        job = server.wait_for_end(server.submit(num_inference_steps=1).id)
        assert (job.state, job.error.reason, job.step) == (pb.FAILED, "NON_FINITE", 0)
        assert "text encoder" in job.error.message and job.stage == "text_encode"


def test_a_step_whose_result_is_not_finite_is_an_error(broken, pb):
    fill(broken / "transformer/diffusion_pytorch_model.safetensors", "proj_out.bias", numpy.nan)

    def tensor(array):
        return pb.Tensor(dtype="float32", shape=array.shape, data=array.tobytes())

    with Server(repository=broken) as server:
        request = pb.DenoiseRequest(
            latents=tensor(numpy.zeros((1, 8, 2, 4, 4), numpy.float32)),
            timestep=tensor(numpy.array([500], numpy.float32)),
            encoder_hidden_states=tensor(numpy.zeros((1, 4, 128), numpy.float32)))
        error = error_of(lambda: server.denoise.Denoise(request, timeout=60))
        assert field_and_reason(error)[1] == "NON_FINITE", error.details()


@pytest.mark.parametrize("backend", ["", "FLASH_ATTN", "TORCH_SDPA"])
def test_queries_that_are_no_numbers_pass_attention_and_fail_the_job(broken, pb, backend):
    fill(broken / "transformer/diffusion_pytorch_model.safetensors", "blocks.2.attn1.to_q.bias", numpy.nan)
    with Server(repository=broken) as server:
        fields = dict(attention=pb.AttentionOptions(backend=backend)) if backend else {}
        job = server.wait_for_end(server.submit(num_frames=9, num_inference_steps=2, **fields).id)
        assert (job.state, job.error.reason) == (pb.FAILED, "NON_FINITE"), job.error
        assert job.stage == "denoise" and not job.artifacts


# ---- what cannot fit


def test_a_job_that_does_not_fit_is_refused_with_both_numbers(shapes):
    started = time.monotonic()
    error = error_of(lambda: shapes.submit(height=512, width=512, num_frames=401))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert field_and_reason(error)[1] == "MEMORY"
    assert re.search(r"512x512 pixels and 401 frames needs [\d.]+ GiB.*there are 1\.46 GiB",
                     error.details()), error.details()
    assert time.monotonic() - started < 10


def test_a_job_that_fits_runs_under_the_same_limit(shapes, pb):
    job = shapes.wait_for_end(shapes.submit(num_frames=17, num_inference_steps=2).id)
    assert job.state == pb.SUCCEEDED, job.error


def test_parameters_whose_plan_explodes_are_refused_by_name(shapes, pb):
    attention = pb.AttentionOptions(backend="VIDEO_SPARSE_ATTN")
    attention.parameters.update({"tile": [1, 1, 1]})
    error = error_of(lambda: shapes.submit(height=256, width=256, num_frames=33,
                                           attention=attention))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert field_and_reason(error)[0] == "attention.parameters.tile"
    assert "9216 tokens" in error.details()


# ---- what could only fail later


@pytest.mark.parametrize("key, value", [("scale_factor_spatial", 8), ("scale_factor_temporal", 2)])
def test_a_scale_that_is_not_the_decoders_is_refused_at_load(broken, key, value):
    edit(broken / "vae/config.json", **{key: value})
    message = refusal_at_load(broken)
    assert "vae/config.json" in message and key in message


@pytest.mark.parametrize("own, word", [
    (dict(attention_backend="SLA_ATTN", attention_parameters={"ratoi": 0.5}), "ratoi"),
    (dict(attention_backend="VIDEO_SPARSE_ATTN", attention_parameters={"tile": [0, 1, 1]}), "tile"),
    (dict(attention_backend="FLASH_ATTN", attention_parameters={"tile": 1}), "tile"),
    (dict(attention_parameters={"ratio": 0.5}), "attention_backend")])
def test_default_attention_parameters_are_read_at_load(broken, own, word):
    edit(broken / "denoised.json", **own)
    message = refusal_at_load(broken)
    assert "denoised.json: attention_parameters" in message and word in message


# ---- long steps


def test_a_cancel_leaves_a_running_step(pb):
    with Server(repository=SHAPES) as server:
        job = server.submit(**LONG)
        server.wait_until(job.id, lambda j: j.stage == "denoise")
        time.sleep(1)
        server.generation.CancelJob(pb.CancelJobRequest(job_id=job.id), timeout=10)
        ended = server.wait_for_end(job.id, timeout=5)
        assert (ended.state, ended.step) == (pb.CANCELLED, 0)


def test_sigterm_ends_a_running_step_after_the_grace(pb):
    with Server("--drain_grace=1s", repository=SHAPES) as server:
        job = server.submit(**LONG)
        server.wait_until(job.id, lambda j: j.stage == "denoise")
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=20) == 0
        assert time.monotonic() - started < 1 + 2 + 2  # the last for a busy machine


# ---- a limit of memory


def test_a_video_that_fits_in_bands_alone_is_decoded_in_bands_to_the_same_frames(pb):
    """What is refused says the least that would do; with that, and a little for what differs from one start
    to the next, the job is taken, stays within it, and gives what a server without a limit gives.
    """
    job = dict(height=384, width=384, num_frames=5, num_inference_steps=1, seed=5, formats=[pb.NPY])

    def frames_and_peak(limit):
        with Server(f"--max_memory={limit}") as server:
            done = server.wait_for_end(server.submit(**job).id)
            assert done.state == pb.SUCCEEDED, done.error.message
            return server.fetch(done.id, pb.NPY), memory(server, "VmHWM") / 2**20

    with Server("--max_memory=200MiB") as server:
        refusal = error_of(lambda: server.submit(**job))
    least = int(re.search(r"needs (\d+) MiB", refusal.details())[1])
    free, free_peak = frames_and_peak("none")
    tight, tight_peak = frames_and_peak(f"{least + 16}MiB")
    assert tight == free
    assert tight_peak <= least + 16 < free_peak
