"""Many jobs at once on the checkpoint that ships: they share forwards, and each result is the one that it
would have alone."""

import json

import harness
import numpy
import pytest

SHAPES = harness.ROOT / "model_repository"
SHARED = 6  # rows a forward, in the mean of a round
# Different in all that may differ inside one forward.
JOBS = [
    dict(prompt="a red circle moving left", seed=1),
    dict(prompt="a small blue square moving up on a grey background", seed=2, guidance_scale=3.0),
    dict(prompt="a green triangle", seed=3, guidance_scale=1.0),
    dict(prompt="a yellow star moving right", seed=4, backend="TORCH_SDPA"),
    dict(prompt="a white circle moving down", seed=5, backend="REFERENCE"),
    dict(prompt="a purple square", seed=6, num_inference_steps=17),
    dict(prompt="an orange star moving left", seed=7, backend="SLIDING_TILE_ATTN"),
    dict(prompt="a cyan circle", seed=8, negative_prompt="a red square", guidance_scale=2.0),
]


@pytest.fixture(scope="module")
def shapes():
    # Threads of OpenMP that wait for one another sleep: where others want the processors too, they would wait for
    # each other's turn, and a step would take a hundred times as long.
    with harness.Server("--threads=2", repository=SHAPES, environment={"OMP_WAIT_POLICY": "passive"}) as running:
        yield running


def request_of(pb, job, **more):
    fields = dict(job) | more
    backend = fields.pop("backend", None)
    if backend:
        fields["attention"] = pb.AttentionOptions(backend=backend)
    return pb.GenerationRequest(formats=[pb.SAFETENSORS, pb.NPY], **fields)


def results_of(server, pb, job_id):
    done = server.wait_for_end(job_id)
    assert done.state == pb.SUCCEEDED, done.error
    return server.fetch(job_id, pb.SAFETENSORS), server.fetch(job_id, pb.NPY), done


def drawn_alone(server, pb, **more):
    return [results_of(server, pb, server.generation.SubmitJob(request_of(pb, job, **more), timeout=30).id)
            for job in JOBS]


@pytest.fixture(scope="module")
def alone(shapes, pb):
    return drawn_alone(shapes, pb)


@pytest.mark.parametrize("linear", ["packed", "exact"])
def test_jobs_at_once_share_forwards_and_draw_what_each_draws_alone(shapes, pb, linear, request):
    how = dict(numerics=pb.NumericsOptions(linear=linear))
    if linear == "exact":  # whose steps take many times as long
        how["num_inference_steps"] = 8
    alone = request.getfixturevalue("alone") if linear == "packed" else drawn_alone(shapes, pb, **how)

    def draw_together():
        jobs = [shapes.generation.SubmitJob.future(request_of(pb, job, **how), timeout=60) for job in JOBS]
        together = [results_of(shapes, pb, job.result().id) for job in jobs]
        for job, one, many in zip(JOBS, alone, together):
            assert many[0] == one[0], f"latents of {job}"
            assert many[1] == one[1], f"frames of {job}"
            assert many[2].receipt.fingerprint == one[2].receipt.fingerprint
            assert many[2].receipt.linear == linear
            asked = job.get("backend")
            ran = {entry.ran for entry in many[2].receipt.entries if entry.role == "self"}
            assert asked is None or asked in ran

    harness.share_forwards(shapes, draw_together, SHARED)


def test_calls_at_once_share_forwards_and_answer_as_each_does_alone(shapes, pb):
    noise = numpy.random.default_rng(1)
    config = json.loads((SHAPES / "shapes/transformer/config.json").read_text())
    channels, width = config["in_channels"], config["text_dim"]
    latents = [noise.standard_normal((1, channels, 1, 8, 8)).astype("<f4") for _ in range(8)]

    def request(i):
        text = noise_text[i]
        return pb.DenoiseRequest(
            latents=pb.Tensor(dtype="float32", shape=latents[i].shape, data=latents[i].tobytes()),
            timestep=pb.Tensor(dtype="float32", shape=[1], data=numpy.array([100.0 * i + 50], "<f4").tobytes()),
            encoder_hidden_states=pb.Tensor(dtype="float32", shape=text.shape, data=text.tobytes()))

    noise_text = [noise.standard_normal((1, 8 + i, width)).astype("<f4") for i in range(8)]
    requests = [request(i) for i in range(8)]

    one = [shapes.denoise.Denoise(each, timeout=60).result.data for each in requests]

    # Far more than run: how quick the client is, on a machine that it shares with the server, does not matter.
    def ask_all():
        calls = [(i, shapes.denoise.Denoise.future(requests[i], timeout=120)) for i in [*range(8)] * 20]
        for i, call in calls:
            assert call.result().result.data == one[i], f"call {i}"

    harness.share_forwards(shapes, ask_all, SHARED)


def test_an_urgent_job_overtakes_a_long_one_whose_video_stays_the_same(shapes, pb):
    long_job = dict(prompt="a red circle moving left", seed=11, num_inference_steps=150)
    shapes_alone = results_of(shapes, pb, shapes.generation.SubmitJob(request_of(pb, long_job), timeout=30).id)
    running = shapes.generation.SubmitJob(request_of(pb, long_job), timeout=30)
    shapes.wait_until(running.id, lambda job: job.step >= 3)
    short = shapes.generation.SubmitJob(
        request_of(pb, JOBS[1], num_inference_steps=4, priority=pb.URGENT, width=96, height=96), timeout=30)
    done = shapes.wait_for_end(short.id)
    assert done.state == pb.SUCCEEDED, done.error
    assert shapes.get(running.id).state == pb.RUNNING
    overtaken = results_of(shapes, pb, running.id)
    assert overtaken[:2] == shapes_alone[:2]


def test_a_suspended_job_goes_on_where_it_was(shapes, pb, alone):
    job = shapes.generation.SubmitJob(request_of(pb, JOBS[0]), timeout=30)
    shapes.wait_until(job.id, lambda j: j.step >= 2)
    shapes.generation.SuspendJob(pb.SuspendJobRequest(job_id=job.id), timeout=30)
    aside = shapes.wait_until(job.id, lambda j: j.state == pb.SUSPENDED)
    assert 2 <= aside.step < aside.num_steps
    assert shapes.generation.ListJobs(pb.ListJobsRequest(state=pb.SUSPENDED), timeout=30).jobs[0].id == job.id
    shapes.generation.ResumeJob(pb.ResumeJobRequest(job_id=job.id), timeout=30)
    again = results_of(shapes, pb, job.id)
    assert again[:2] == alone[0][:2] and again[2].receipt.fingerprint == alone[0][2].receipt.fingerprint
    assert again[2].attempt == 2


def test_a_deadline_that_cannot_be_met_is_refused_unless_tried_anyway(shapes, pb, alone):
    from google.protobuf import duration_pb2
    hopeless = dict(num_inference_steps=1000, time_limit=duration_pb2.Duration(seconds=1))
    error = harness.error_of(lambda: shapes.generation.SubmitJob(request_of(pb, JOBS[0], **hopeless), timeout=30))
    assert harness.field_and_reason(error)[1] == "DEADLINE_UNREACHABLE"
    tried = shapes.generation.SubmitJob(request_of(pb, JOBS[0], best_effort_deadline=True, **hopeless), timeout=30)
    assert shapes.wait_for_end(tried.id).error.reason == "DEADLINE_EXCEEDED"
