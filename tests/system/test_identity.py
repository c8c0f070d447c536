"""Fingerprints on real models: one thing changed differs, what must be equal is equal, and equal means the
same bytes."""

import json
import re
import shutil
import subprocess

import grpc
import numpy
import pytest
import safetensors.numpy
from google.protobuf import json_format, struct_pb2

from harness import BIN, Server, ctl, error_of, model_repository

VSA = "VIDEO_SPARSE_ATTN"


def edit_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def put(key, value):
    return lambda config: config.__setitem__(key, value)


def flip_one_byte(path):
    """The lowest bit of one weight in the middle of a file: a change that sampling would not see."""
    tensors = safetensors.numpy.load_file(path)
    name = max(tensors, key=lambda key: tensors[key].nbytes)
    tensor = numpy.array(tensors[name])
    tensor.view(numpy.uint8).reshape(-1)[tensor.nbytes // 2 + 1] ^= 1
    tensors[name] = tensor
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


def weights(folder):
    path, = folder.glob("*.safetensors")
    return path


# Name of a copy of the tiny model, and the one thing that is changed in it.
CHANGES = {
    "solver_order": lambda m: edit_json(m / "scheduler/scheduler_config.json", put("solver_order", 1)),
    "flow_shift": lambda m: edit_json(m / "scheduler/scheduler_config.json", put("flow_shift", 4.0)),
    "latents_mean": lambda m: edit_json(m / "vae/config.json",
                                        lambda c: c["latents_mean"].__setitem__(3, c["latents_mean"][3] + 0.1)),
    "latents_std": lambda m: edit_json(m / "vae/config.json",
                                       lambda c: c["latents_std"].__setitem__(3, c["latents_std"][3] + 0.1)),
    "transformer_eps": lambda m: edit_json(m / "transformer/config.json", put("eps", 1e-4)),
    "encoder_eps": lambda m: edit_json(m / "text_encoder/config.json", put("layer_norm_epsilon", 1e-4)),
    "tokenizer": lambda m: edit_json(m / "tokenizer/tokenizer.json",
                                     lambda t: t["model"]["vocab"].__setitem__(
                                         20, [t["model"]["vocab"][20][0], t["model"]["vocab"][20][1] - 0.5])),
    "weight_transformer": lambda m: flip_one_byte(weights(m / "transformer")),
    "weight_encoder": lambda m: flip_one_byte(weights(m / "text_encoder")),
    "weight_vae": lambda m: flip_one_byte(weights(m / "vae")),
    "default_backend": lambda m: edit_json(m / "denoised.json", put("attention_backend", VSA)),
    "default_parameters": lambda m: edit_json(m / "denoised.json", lambda c: c.update(
        attention_backend=VSA, attention_parameters={"tile": [1, 2, 2], "sparsity": 0.25})),
    "other_parameters": lambda m: edit_json(m / "denoised.json", lambda c: c.update(
        attention_backend=VSA, attention_parameters={"tile": [1, 2, 2], "sparsity": 0.75})),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    repository = tmp_path_factory.mktemp("identity")
    for name, change in {"base": None, "copy": None, **CHANGES}.items():
        shutil.copytree(model_repository() / "tiny", repository / name)
        if change:
            change(repository / name)
    (repository / "copy/README.md").write_text("nobody reads this\n")
    with Server(repository=repository) as running:
        yield running


def run(server, pb, model="base", **fields):
    """Fingerprint and bytes of the same small job."""
    fields = dict(seed=5, num_inference_steps=3, formats=[pb.NPY]) | fields
    job = server.wait_for_end(server.submit(model=model, **fields).id)
    assert job.state == pb.SUCCEEDED, job.error
    return job.receipt.fingerprint, server.fetch(job.id, pb.NPY)


def options(pb, backend=VSA, **parameters):
    struct = struct_pb2.Struct()
    json_format.ParseDict(parameters, struct)
    return pb.AttentionOptions(backend=backend, parameters=struct)


def test_one_thing_changed_in_the_models_files_differs(server, pb):
    seen = {run(server, pb)[0]: "base"}
    for name in CHANGES:
        fingerprint, _ = run(server, pb, model=name)
        assert fingerprint not in seen, f"{name} is as {seen[fingerprint]}"
        seen[fingerprint] = name


def test_a_copy_of_the_model_with_a_file_that_nobody_reads_is_the_model(server, pb):
    assert run(server, pb, model="copy") == run(server, pb)


def test_one_thing_changed_in_the_request_differs(server, pb):
    latents = numpy.random.default_rng(0).standard_normal((1, 16, 2, 8, 8)).astype("<f4")
    tensor = pb.Tensor(dtype="float32", shape=latents.shape, data=latents.tobytes())
    seen = {}
    for fields in ({}, dict(seed=6), dict(prompt="a blue square"), dict(negative_prompt="dark"),
                   dict(num_inference_steps=2), dict(guidance_scale=3), dict(flow_shift=2), dict(num_frames=9),
                   dict(height=80), dict(max_sequence_length=100), dict(latents=tensor),
                   dict(attention=options(pb)), dict(attention=options(pb, sparsity=0.5)),
                   dict(attention=options(pb, dense_first_steps=1)),
                   dict(attention=options(pb, backend="REFERENCE")),
                   dict(numerics=pb.NumericsOptions(linear="exact"))):
        fingerprint, _ = run(server, pb, **fields)
        assert fingerprint not in seen, f"{fields} is as {seen[fingerprint]}"
        seen[fingerprint] = fields


def test_order_and_spelling_of_parameters_do_not_matter(server, pb):
    wanted = {"tile": [1, 2, 2], "sparsity": 0.5, "coarse": False, "dense_first_steps": 1}
    seen = set()
    for turn in range(20):
        keys = list(wanted)[turn % 4:] + list(wanted)[:turn % 4]
        keys = keys[::-1] if turn % 2 else keys
        seen.add(run(server, pb, attention=options(pb, **{key: wanted[key] for key in keys})))
    assert len(seen) == 1
    seen.add(run(server, pb, attention=options(pb, **wanted, dense_layers=[])))
    assert len(seen) == 1, "a default written out"


def test_a_force_that_names_what_ran_anyway_changes_nothing(server, pb):
    longer = dict(num_inference_steps=200, height=128, width=128)
    alone = run(server, pb, **longer)
    ran = {row.role: row.ran for row in
           server.generation.ListJobs(pb.ListJobsRequest(), timeout=30).jobs[0].receipt.entries}
    server.operator.ForceBackend(pb.ForceBackendRequest(backend=ran["self"]), timeout=30)
    assert run(server, pb, **longer) == alone
    server.operator.ReleaseForce(pb.ReleaseForceRequest(all=True), timeout=30)
    job = server.submit(model="base", seed=5, formats=[pb.NPY], **longer)
    server.wait_until(job.id, lambda j: j.step >= 3)
    server.operator.ForceBackend(pb.ForceBackendRequest(backend=ran["self"]), timeout=30)
    done = server.wait_for_end(job.id)
    assert (done.receipt.fingerprint, server.fetch(job.id, pb.NPY)) == alone
    assert {row.source for row in done.receipt.entries if row.role == "self"} == {"automatic", "force"}


def test_a_force_that_keeps_the_requests_parameters_changes_nothing(server, pb):
    wanted = options(pb, tile=[1, 2, 2], sparsity=0.5)
    alone = run(server, pb, attention=wanted)
    server.operator.ForceBackend(pb.ForceBackendRequest(backend=VSA), timeout=30)
    assert run(server, pb, attention=wanted) == alone
    forced = pb.ForceBackendRequest(backend=VSA, parameters=options(pb, sparsity=0.5, tile=[1, 2, 2]).parameters)
    server.operator.ForceBackend(forced, timeout=30)
    assert run(server, pb) == alone, "nor does who brought them"


def test_a_denoise_call_is_known_by_all_its_inputs(server, pb):
    random = numpy.random.default_rng(1)

    def tensor(*shape):
        values = random.standard_normal(shape).astype("<f4")
        return pb.Tensor(dtype="float32", shape=shape, data=values.tobytes())

    timestep = pb.Tensor(dtype="float32", shape=[1], data=numpy.array([500], "<f4").tobytes())
    base = dict(model="base", latents=tensor(1, 16, 2, 8, 8), timestep=timestep,
                encoder_hidden_states=tensor(1, 8, 256), negative_encoder_hidden_states=tensor(1, 8, 256),
                guidance_scale=3, sigma=0.5, sigma_next=0.25, output=pb.NEXT_LATENTS)

    def call(**fields):
        reply = server.denoise.Denoise(pb.DenoiseRequest(**(base | fields)), timeout=60)
        return reply.receipt.fingerprint, reply.result.data

    first = call()
    assert call() == first
    seen = {first[0]: "unchanged"}
    later = pb.Tensor(dtype="float32", shape=[1], data=numpy.array([400], "<f4").tobytes())
    for fields in (dict(latents=tensor(1, 16, 2, 8, 8)), dict(timestep=later),
                   dict(encoder_hidden_states=tensor(1, 8, 256)),
                   dict(negative_encoder_hidden_states=tensor(1, 8, 256)), dict(guidance_scale=2),
                   dict(sigma=0.75), dict(sigma_next=0.1), dict(output=pb.PREDICTION),
                   dict(model="transformer_eps"), dict(attention=options(pb, backend="REFERENCE"))):
        fingerprint, data = call(**fields)
        assert fingerprint not in seen, f"{list(fields)} is as {seen[fingerprint]}"
        assert data != first[1]
        seen[fingerprint] = list(fields)


def fingerprint_with(pb, *flags):
    with Server(*flags) as server:
        return run(server, pb, model="tiny")


def drawn(path, *flags):
    """The fingerprint and the bytes of one draw by `denoisectl run`."""
    done = ctl("run", "a red circle", "-o", path, f"--model_repository={model_repository()}", "--seed=5",
               "--height=64", "--width=64", "--frames=5", "--dtype=float32", "--json", *flags)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["receipt"]["fingerprint"], path.read_bytes()


def test_threads_and_numerics_are_in_the_fingerprint(tmp_path):
    # LibTorch's products may round otherwise on another number of threads; on some CPUs they do.
    seen = {}
    for i, flags in enumerate((["--threads=1"], ["--threads=2"], ["--threads=2", "--linear=exact"],
                               ["--threads=2", "--linear=int8"])):
        first = drawn(tmp_path / f"{i}.npy", *flags)
        assert drawn(tmp_path / f"{i}-again.npy", *flags) == first, flags
        assert first[0] not in seen, (flags, seen[first[0]])
        seen[first[0]] = flags


def test_packed_numerics_draw_what_exact_ones_draw(tmp_path):
    frames = []
    for how in ("exact", "packed"):
        drawn(tmp_path / f"{how}.npy", f"--linear={how}")
        frames.append(numpy.load(tmp_path / f"{how}.npy"))
    assert numpy.abs(frames[0] - frames[1]).max() <= 1 / 255


def defaults_of(server, pb):
    models = server.models.ListModels(pb.ListModelsRequest(), timeout=30).models
    return {model.name: model.defaults.numerics.linear for model in models}


def test_a_jobs_numerics_do_not_depend_on_how_the_model_keeps_its_weights(server, pb, tmp_path):
    repository = tmp_path / "repository"
    shutil.copytree(model_repository() / "tiny", repository / "base")
    shutil.copytree(model_repository() / "tiny", repository / "exact")
    edit_json(repository / "exact/denoised.json", put("numerics", {"linear": "exact"}))
    drawn = {}
    with Server("--linear=exact", repository=repository) as other:
        for how in ("exact", "packed", "int8"):
            asked = pb.NumericsOptions(linear=how)
            drawn[how] = run(server, pb, numerics=asked)
            assert run(other, pb, numerics=asked) == drawn[how], how
        assert run(other, pb) == drawn["exact"]
        defaults = defaults_of(other, pb)
        assert defaults == {"base": "exact", "exact": "exact"}
    with Server("--linear=packed", repository=repository) as flagged:
        assert defaults_of(flagged, pb) == {"base": "packed", "exact": "packed"}
    with Server(repository=repository) as third:
        assert defaults_of(third, pb) == {"base": "packed", "exact": "exact"}
        job = third.wait_for_end(third.submit(model="exact", num_inference_steps=1, formats=[pb.NPY]).id)
        assert (job.parameters.numerics.linear, job.receipt.linear) == ("exact", "exact")
    assert run(server, pb) == drawn["packed"]
    assert len({fingerprint for fingerprint, _ in drawn.values()}) == 3
    with Server("--linear=int8", repository=repository) as fourth:  # a byte a weight, and nothing else
        assert defaults_of(fourth, pb) == {"base": "int8", "exact": "int8"}
        assert run(fourth, pb) == drawn["int8"]
        error = error_of(lambda: fourth.submit(model="base", numerics=pb.NumericsOptions(linear="packed")))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT and "numerics.linear" in error.details()


def test_other_instructions_or_another_dtype_are_another_fingerprint(pb):
    seen = {}
    for flags in ([], ["--cpu_isa=avx2"], ["--dtype=bfloat16"]):
        fingerprint, data = fingerprint_with(pb, *flags)
        if fingerprint in seen:
            # Where the machine's best is avx2 the pin changes nothing.
            assert flags == ["--cpu_isa=avx2"] and data == seen[fingerprint]
        seen[fingerprint] = data


def test_receipts_name_the_build_and_its_kernels(server, pb):
    job = server.wait_for_end(server.submit(model="base", num_inference_steps=1).id)
    assert re.fullmatch(r"\d+\.\d+\.\d+(\+[0-9a-f]{12}(\.dirty)?)?", job.receipt.version)
    said = subprocess.run([BIN / "denoised", "--version"], capture_output=True, text=True, timeout=30).stdout
    assert said == f"denoised {job.receipt.version}\n"
    assert "own" in job.receipt.kernels or "avx" in job.receipt.kernels.lower(), job.receipt.kernels
    assert job.receipt.device not in job.receipt.kernels, "a CPU's name says nothing about its kernels"
