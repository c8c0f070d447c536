"""Single denoising steps by a real client."""

import concurrent.futures

import grpc
import numpy
import pytest

from harness import SLOW, error_of, field_and_reason

GENERATOR = numpy.random.default_rng(0)
TEXT = GENERATOR.standard_normal((1, 16, 256)).astype("<f4")
LATENTS = GENERATOR.standard_normal((1, 16, 2, 8, 8)).astype("<f4")


def tensor(pb, array, dtype="float32"):
    return pb.Tensor(dtype=dtype, shape=array.shape, data=array.tobytes())


def request(pb, **fields):
    values = dict(latents=tensor(pb, LATENTS), encoder_hidden_states=tensor(pb, TEXT),
                  timestep=tensor(pb, numpy.array([500], "<f4")))
    return pb.DenoiseRequest(**(values | fields))


def array(message):
    return numpy.frombuffer(message.data, {"float32": "<f4"}[message.dtype]).reshape(message.shape)


def predict(server, message):
    return server.denoise.Denoise(message, timeout=60)


def test_prediction_has_the_latents_shape_and_repeats(server, pb):
    first, second = predict(server, request(pb)), predict(server, request(pb))
    assert array(first.result).shape == LATENTS.shape
    assert numpy.isfinite(array(first.result)).all() and array(first.result).std() > 0
    assert first.result.data == second.result.data
    assert {entry.role for entry in first.receipt.entries} >= {"self", "cross"}
    assert first.forward_seconds > 0


def test_next_latents_are_the_euler_step(server, pb):
    velocity = array(predict(server, request(pb)).result)
    stepped = array(predict(server, request(pb, output=pb.NEXT_LATENTS, sigma=0.9, sigma_next=0.7)).result)
    expected = LATENTS + numpy.float32(0.7 - 0.9) * velocity
    numpy.testing.assert_allclose(stepped, expected, rtol=1e-6, atol=1e-6)


def test_guidance_mixes_two_predictions(server, pb):
    other = GENERATOR.standard_normal(TEXT.shape).astype("<f4")
    cond = array(predict(server, request(pb)).result)
    uncond = array(predict(server, request(pb, encoder_hidden_states=tensor(pb, other))).result)
    mixed = array(predict(server, request(
        pb, negative_encoder_hidden_states=tensor(pb, other), guidance_scale=3)).result)
    numpy.testing.assert_allclose(mixed, uncond + 3 * (cond - uncond), rtol=1e-4, atol=1e-4)


def test_backend_is_chosen_by_the_request(server, pb):
    by_name = {}
    for name in ("REFERENCE", "TORCH_SDPA"):
        reply = predict(server, request(pb, attention=pb.AttentionOptions(backend=name)))
        entry = next(e for e in reply.receipt.entries if e.role == "self")
        assert (entry.asked, entry.ran, entry.source) == (name, name, "request")
        by_name[name] = array(reply.result)
    numpy.testing.assert_allclose(by_name["REFERENCE"], by_name["TORCH_SDPA"], rtol=1e-3, atol=1e-4)


def test_steps_are_served_while_a_job_runs(server, pb):
    job = server.submit(**SLOW)
    server.wait_until(job.id, lambda j: j.step >= 1)
    predict(server, request(pb))
    assert server.get(job.id).state == pb.RUNNING
    server.generation.CancelJob(pb.CancelJobRequest(job_id=job.id), timeout=30)
    server.wait_for_end(job.id)


def test_concurrent_calls_get_their_own_answers(server, pb):
    shifted = [LATENTS + numpy.float32(i) for i in range(8)]
    alone = [predict(server, request(pb, latents=tensor(pb, x))).result.data for x in shifted]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(
            lambda x: predict(server, request(pb, latents=tensor(pb, x))).result.data, shifted))
    assert together == alone


def bad_requests(pb):
    nan = LATENTS.copy()
    nan[0, 3, 1, 2, 2] = numpy.nan
    infinite = LATENTS.copy()
    infinite[0, 0, 0, 0, 0] = numpy.inf
    short = tensor(pb, LATENTS)
    short.data = short.data[:-1]
    overflow = pb.Tensor(dtype="float32", shape=[1 << 32, 1 << 32, 4], data=b"")
    return {
        "nan": ("latents", request(pb, latents=tensor(pb, nan))),
        "infinite": ("latents", request(pb, latents=tensor(pb, infinite))),
        "cut": ("latents.data", request(pb, latents=short)),
        "overflow": ("latents.shape", request(pb, latents=overflow)),
        "rank": ("latents", request(pb, latents=tensor(pb, LATENTS[0]))),
        "channels": ("latents", request(pb, latents=tensor(pb, LATENTS[:, :3]))),
        "odd height": ("latents", request(pb, latents=tensor(pb, LATENTS[:, :, :, :7]))),
        "dtype": ("latents.dtype", request(pb, latents=tensor(pb, LATENTS, "float31"))),
        "wrong dtype": ("latents", request(pb, latents=tensor(pb, LATENTS.astype("<i4"), "int32"))),
        "timestep": ("timestep", request(pb, timestep=tensor(pb, numpy.array([-1], "<f4")))),
        "nan timestep": ("timestep", request(pb, timestep=tensor(pb, numpy.array([numpy.nan], "<f4")))),
        "two timesteps": ("timestep", request(pb, timestep=tensor(pb, numpy.array([1, 2], "<f4")))),
        "text width": ("encoder_hidden_states",
                       request(pb, encoder_hidden_states=tensor(pb, TEXT[:, :, :10]))),
        "no negative": ("negative_encoder_hidden_states", request(pb, guidance_scale=5)),
        "no sigma": ("sigma", request(pb, output=pb.NEXT_LATENTS)),
        "backend": ("attention.backend", request(pb, attention=pb.AttentionOptions(backend="fast"))),
    }


@pytest.mark.parametrize("name", ["nan", "infinite", "cut", "overflow", "rank", "channels", "odd height",
                                  "dtype", "wrong dtype", "timestep", "nan timestep", "two timesteps",
                                  "text width", "no negative", "no sigma", "backend"])
def test_bad_requests_name_their_field(server, pb, name):
    field, message = bad_requests(pb)[name]
    error = error_of(lambda: predict(server, message))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error.details()
    assert field_and_reason(error)[0].split(".")[0] == field.split(".")[0]
    predict(server, request(pb))  # nothing else suffers


def test_unknown_model_is_not_found(server, pb):
    error = error_of(lambda: predict(server, request(pb, model="nope")))
    assert error.code() == grpc.StatusCode.NOT_FOUND


def test_strict_refusal_lists_why(server, pb):
    options = pb.AttentionOptions(backend="NO_ATTENTION", policy=pb.STRICT)
    error = error_of(lambda: predict(server, request(pb, attention=options)))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "NO_ATTENTION" in error.details()


def test_deadline_is_kept(server, pb):
    job = server.submit(**SLOW)
    server.wait_until(job.id, lambda j: j.step >= 1)
    error = error_of(lambda: server.denoise.Denoise(request(pb), timeout=0.0005))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    server.generation.CancelJob(pb.CancelJobRequest(job_id=job.id), timeout=30)
    server.wait_for_end(job.id)
