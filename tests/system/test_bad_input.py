"""Each bad request gets a clear error that names the field, and nothing else suffers."""

import math

import grpc
import numpy
import pytest

from harness import SMALL, error_of, field_and_reason

INT64_MAX = 2**63 - 1
INVALID = grpc.StatusCode.INVALID_ARGUMENT
CASES = [
    ("height", dict(height=33)), ("height", dict(height=0)), ("height", dict(height=-64)),
    ("height", dict(height=INT64_MAX)), ("height", dict(height=1 << 40)),
    ("width", dict(width=65)), ("width", dict(width=0)), ("width", dict(width=-1)),
    ("width", dict(width=-2**63)),
    ("num_frames", dict(num_frames=2)), ("num_frames", dict(num_frames=0)),
    ("num_frames", dict(num_frames=-3)), ("num_frames", dict(num_frames=INT64_MAX)),
    ("num_frames", dict(height=4096, width=4096, num_frames=1025)),
    ("fps", dict(fps=0)), ("fps", dict(fps=-1)), ("fps", dict(fps=INT64_MAX)),
    ("num_inference_steps", dict(num_inference_steps=0)),
    ("num_inference_steps", dict(num_inference_steps=-1)),
    ("num_inference_steps", dict(num_inference_steps=INT64_MAX)),
    ("guidance_scale", dict(guidance_scale=math.nan)), ("guidance_scale", dict(guidance_scale=math.inf)),
    ("guidance_scale", dict(guidance_scale=-1.0)),
    ("flow_shift", dict(flow_shift=0.0)), ("flow_shift", dict(flow_shift=math.nan)),
    ("max_sequence_length", dict(max_sequence_length=0)),
    ("max_sequence_length", dict(max_sequence_length=INT64_MAX)),
    ("seed", dict(seed=-1)),
    ("numerics.linear", dict(numerics=dict(linear="packd"))), ("numerics.linear", dict(numerics=dict(linear=""))),
    ("prompt", dict(prompt="a" * (1 << 20))), ("negative_prompt", dict(negative_prompt="b" * (1 << 20))),
]


class Failure:
    """Why a job did not happen, whether SubmitJob or the job itself said so."""

    def __init__(self, code, message):
        self.code, self.message = code, message


def submit_or_error(server, **fields):
    try:
        job = server.submit(num_inference_steps=1, **fields)
    except grpc.RpcError as refused:
        return Failure(refused.code().value[0], refused.details())
    error = server.wait_for_end(job.id).error
    return Failure(error.code, error.message)


@pytest.mark.parametrize("field, fields", CASES,
                         ids=[f"{f}-{i}" for i, (f, _) in enumerate(CASES)])
def test_bad_fields_are_named(server, pb, field, fields):
    error = error_of(lambda: server.submit(**fields))
    assert error.code() == INVALID, error.details()
    assert field_and_reason(error)[0] == field
    assert field in error.details()


def test_refused_requests_leave_no_job(server, pb):
    before = len(server.generation.ListJobs(pb.ListJobsRequest(page_size=1000), timeout=30).jobs)
    error_of(lambda: server.submit(height=33))
    after = len(server.generation.ListJobs(pb.ListJobsRequest(page_size=1000), timeout=30).jobs)
    assert before == after


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_latents_that_are_not_finite_are_refused(server, pb, value):
    latents = numpy.zeros((1, 16, 2, 8, 8), "<f4")
    latents[0, 5, 1, 1, 1] = value
    tensor = pb.Tensor(dtype="float32", shape=latents.shape, data=latents.tobytes())
    error = error_of(lambda: server.submit(latents=tensor))
    assert error.code() == INVALID and field_and_reason(error)[0].startswith("latents")


def test_latents_of_another_shape_are_refused(server, pb):
    latents = numpy.zeros((1, 16, 3, 8, 8), "<f4")
    tensor = pb.Tensor(dtype="float32", shape=latents.shape, data=latents.tobytes())
    error = error_of(lambda: server.submit(latents=tensor))
    assert error.code() == INVALID and field_and_reason(error)[0].startswith("latents")


def test_unknown_names_are_refused(server, pb):
    assert error_of(lambda: server.submit(model="nope")).code() == grpc.StatusCode.NOT_FOUND
    assert error_of(lambda: server.submit(model="../tiny")).code() == grpc.StatusCode.NOT_FOUND
    error = error_of(lambda: server.submit(attention=pb.AttentionOptions(backend="FLASH")))
    assert error.code() == INVALID and "FLASH_ATTN" in error.details()
    error = error_of(lambda: server.submit(latents=pb.Tensor(dtype="float8", shape=[1], data=b"x")))
    assert error.code() == INVALID and "float8" in error.details()


def test_unknown_backend_parameters_are_refused(server, pb):
    options = pb.AttentionOptions(backend="TORCH_SDPA")
    options.parameters["no_such_parameter"] = 1
    error = submit_or_error(server, attention=options)
    assert error.code == INVALID.value[0]
    assert "no_such_parameter" in error.message


def test_strict_refusal_fails_with_every_reason(server, pb):
    options = pb.AttentionOptions(backend="NO_ATTENTION", policy=pb.STRICT)
    error = submit_or_error(server, attention=options)
    assert error.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    assert "NO_ATTENTION" in error.message


def test_message_over_the_cap_is_resource_exhausted(server, pb):
    request = pb.GenerationRequest(prompt="p", **SMALL)
    request.latents.data = bytes(65 << 20)
    error = error_of(lambda: server.generation.SubmitJob(request, timeout=60))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_bytes_that_are_no_message_are_invalid(server):
    call = server.channel.unary_unary("/denoised.v1.GenerationService/SubmitJob")
    for payload in (b"\xff\xff\xff", b"\x12\x02\xc3\x28", b"\x0b" * 5000):
        error = error_of(lambda payload=payload: call(payload, timeout=30))
        assert error.code() == INVALID
        assert "GenerationRequest" in error.details()


def test_admin_methods_are_not_on_the_public_port(server, pb):
    public = pb.AdminServiceStub(server.channel)
    calls = [lambda: public.ForceBackend(pb.ForceBackendRequest(backend="REFERENCE")),
             lambda: public.HoldBackend(pb.HoldBackendRequest(backend="REFERENCE")),
             lambda: public.ReleaseForce(pb.ReleaseForceRequest(all=True)),
             lambda: public.ListLeases(pb.ListLeasesRequest()),
             lambda: public.ListBackends(pb.ListBackendsRequest()),
             lambda: public.ExplainSelection(pb.ExplainSelectionRequest()),
             lambda: public.Drain(pb.DrainRequest()),
             lambda: public.SetLogLevel(pb.SetLogLevelRequest(level="info"))]
    for call in calls:
        assert error_of(call).code() == grpc.StatusCode.UNIMPLEMENTED


def test_the_server_still_works_after_all_of_this(server, pb):
    job = server.wait_for_end(server.submit(num_inference_steps=1).id)
    assert job.state == pb.SUCCEEDED
