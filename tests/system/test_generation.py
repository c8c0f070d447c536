"""Whole jobs by a real client: results, reproducibility, watching, cancelling, deadlines."""

import concurrent.futures
import io
import time

import grpc
import numpy
import pytest
import safetensors.numpy

from harness import SLOW, SMALL, Server, error_of, eventually, field_and_reason


def test_every_format_of_one_job(server, pb):
    formats = [pb.NPY, pb.MP4, pb.GIF, pb.PNG, pb.SAFETENSORS]
    job = server.submit(num_inference_steps=3, seed=5, formats=formats)
    assert job.state == pb.QUEUED and len(job.id) == 32
    done = server.wait_for_end(job.id)
    assert done.state == pb.SUCCEEDED, done.error
    assert (done.step, done.num_steps) == (3, 3)
    assert [artifact.format for artifact in done.artifacts] == formats
    frames = numpy.load(io.BytesIO(server.fetch(job.id, pb.NPY)))
    assert frames.dtype == numpy.float32 and frames.shape == (5, 64, 64, 3)
    assert frames.min() >= 0 and frames.max() <= 1 and frames.std() > 0
    assert server.fetch(job.id, pb.MP4)[4:8] == b"ftyp"
    assert server.fetch(job.id, pb.GIF)[:6] == b"GIF89a"
    assert server.fetch(job.id, pb.PNG)[:8] == b"\x89PNG\r\n\x1a\n"
    latents = safetensors.numpy.load(server.fetch(job.id, pb.SAFETENSORS))
    assert [tensor.shape for tensor in latents.values()] == [(1, 16, 2, 8, 8)]


def test_artifact_info_matches_the_bytes(server, pb):
    import hashlib
    job = server.wait_for_end(server.submit(num_inference_steps=1, formats=[pb.NPY]).id)
    data = server.fetch(job.id, pb.NPY)
    assert job.artifacts[0].size_bytes == len(data)
    assert job.artifacts[0].sha256 == hashlib.sha256(data).hexdigest()


def test_job_says_what_it_took_for_unset_fields(server, pb):
    default = server.models.ListModels(pb.ListModelsRequest(), timeout=30).models[0]
    assert default.is_default and default.name == "tiny"
    job = server.submit(num_inference_steps=1)
    assert job.parameters.model == "tiny"
    assert job.parameters.height == 64
    assert job.parameters.guidance_scale == default.defaults.guidance_scale
    assert job.parameters.scheduler == default.scheduler == "UniPCMultistepScheduler"
    assert server.wait_for_end(job.id).parameters.seed >= 0


def test_receipt_covers_every_step_and_role(server, pb):
    job = server.wait_for_end(server.submit(num_inference_steps=4).id)
    by_role = {}
    for entry in job.receipt.entries:
        by_role.setdefault(entry.role, []).append(entry)
    assert {"self", "cross", "text_encoder"} <= set(by_role)
    assert [(e.first_step, e.last_step) for e in by_role["self"]] == [(0, 3)]
    entry = by_role["self"][0]
    assert entry.source == "automatic" and not entry.HasField("asked")
    layers, guided = 2, 2 if job.parameters.guidance_scale > 1 else 1
    assert entry.calls == 4 * layers * guided
    assert entry.seconds > 0
    assert len(job.receipt.fingerprint) == 64 and job.receipt.torch_version.startswith("2.")
    assert {time.stage for time in job.stage_times} == {"text_encode", "denoise", "decode", "encode"}


def test_same_seed_same_bytes_and_fingerprint(server, pb):
    def run(seed):
        job = server.wait_for_end(server.submit(num_inference_steps=2, seed=seed, formats=[pb.NPY]).id)
        return job.receipt.fingerprint, server.fetch(job.id, pb.NPY)

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_seed_is_drawn_and_reported(server, pb):
    first, second = (server.wait_for_end(server.submit(num_inference_steps=1, formats=[pb.NPY]).id)
                     for _ in range(2))
    assert first.parameters.seed != second.parameters.seed
    again = server.submit(num_inference_steps=1, seed=first.parameters.seed, formats=[pb.NPY])
    server.wait_for_end(again.id)
    assert server.fetch(again.id, pb.NPY) == server.fetch(first.id, pb.NPY)


def test_generate_streams_what_submit_and_fetch_give(server, pb):
    request = pb.GenerationRequest(prompt="a dog", seed=9, num_inference_steps=3, formats=[pb.NPY], **SMALL)
    events = list(server.generation.Generate(request, timeout=60))
    jobs = [event.job for event in events if event.HasField("job")]
    data = b"".join(event.chunk.data for event in events if event.HasField("chunk"))
    assert jobs[-1].state == pb.SUCCEEDED
    sequences = [job.sequence for job in jobs]
    assert sequences == sorted(set(sequences))
    job = server.submit("a dog", seed=9, num_inference_steps=3, formats=[pb.NPY])
    server.wait_for_end(job.id)
    assert server.fetch(job.id, pb.NPY) == data


def test_given_latents_replace_the_seeds_noise(server, pb):
    noise = numpy.random.default_rng(0).standard_normal((1, 16, 2, 8, 8)).astype("<f4")

    def run(seed):
        tensor = pb.Tensor(dtype="float32", shape=noise.shape, data=noise.tobytes())
        job = server.submit(num_inference_steps=2, seed=seed, latents=tensor, formats=[pb.NPY])
        assert server.wait_for_end(job.id).state == pb.SUCCEEDED
        return server.fetch(job.id, pb.NPY)

    assert run(1) == run(2)


def test_watch_resumes_where_it_broke(server, pb):
    job = server.submit(num_inference_steps=200)
    first = server.wait_until(job.id, lambda j: j.step >= 2)
    seen = [j for j in server.generation.WatchJob(
        pb.WatchJobRequest(job_id=job.id, after_sequence=first.sequence), timeout=60)]
    assert seen[0].sequence > first.sequence
    assert [j.step for j in seen] == sorted(j.step for j in seen)
    assert seen[-1].state == pb.SUCCEEDED
    again = server.generation.WatchJob(
        pb.WatchJobRequest(job_id=job.id, after_sequence=seen[-1].sequence), timeout=30)
    assert list(again) == []


def test_cancel_stops_within_a_step(server, pb):
    job = server.submit(**SLOW)
    running = server.wait_until(job.id, lambda j: j.step >= 2)
    start = time.monotonic()
    server.generation.CancelJob(pb.CancelJobRequest(job_id=job.id), timeout=30)
    ended = server.wait_for_end(job.id)
    assert ended.state == pb.CANCELLED
    assert time.monotonic() - start < 5
    assert ended.step <= running.step + 100  # nowhere near its 1000
    error = error_of(lambda: server.generation.CancelJob(pb.CancelJobRequest(job_id=job.id), timeout=30))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION


def test_queued_job_is_cancelled_before_it_begins(server, pb):
    first = server.submit(**SLOW)
    server.wait_until(first.id, lambda j: j.state == pb.RUNNING)
    second = server.submit(**(SLOW | dict(width=128, priority=pb.BATCH)))  # shares no step, comes after
    assert server.get(second.id).state == pb.QUEUED
    server.generation.CancelJob(pb.CancelJobRequest(job_id=second.id), timeout=30)
    assert server.wait_for_end(second.id).state == pb.CANCELLED
    assert not server.get(second.id).HasField("started_at")
    server.generation.CancelJob(pb.CancelJobRequest(job_id=first.id), timeout=30)
    server.wait_for_end(first.id)


def test_client_that_leaves_generate_cancels_its_job(server, pb):
    stream = server.generation.Generate(pb.GenerationRequest(prompt="p", **SLOW))
    job_id = next(stream).job.id
    server.wait_until(job_id, lambda j: j.step >= 1)
    stream.cancel()
    assert server.wait_for_end(job_id, timeout=10).state == pb.CANCELLED
    assert server.wait_for_end(server.submit(num_inference_steps=1).id).state == pb.SUCCEEDED


def test_client_that_leaves_does_not_cancel_a_submitted_job(server, pb):
    job = server.submit(num_inference_steps=100)
    channel = grpc.insecure_channel(server.public)
    watch = pb.GenerationServiceStub(channel).WatchJob(pb.WatchJobRequest(job_id=job.id))
    next(watch)
    channel.close()
    assert server.wait_for_end(job.id).state == pb.SUCCEEDED


def test_deadline_of_generate_stops_the_job(server, pb):
    request = pb.GenerationRequest(prompt="p", best_effort_deadline=True, **SLOW)
    stream = server.generation.Generate(request, timeout=3)
    job_id = next(stream).job.id
    assert error_of(lambda: stream).code() == grpc.StatusCode.DEADLINE_EXCEEDED
    ended = server.wait_for_end(job_id, timeout=10)
    assert ended.state in (pb.FAILED, pb.CANCELLED) and ended.step < 1000


def test_time_limit_fails_a_submitted_job(server, pb):
    request = pb.GenerationRequest(prompt="p", best_effort_deadline=True, **SLOW)
    request.time_limit.FromMilliseconds(500)
    job = server.generation.SubmitJob(request, timeout=30)
    ended = server.wait_for_end(job.id, timeout=10)
    assert ended.state == pb.FAILED
    assert ended.error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


def test_jobs_are_listed_newest_first_by_pages(server, pb):
    ids = [server.submit(num_inference_steps=1).id for _ in range(3)]
    for job_id in ids:
        server.wait_for_end(job_id)
    first = server.generation.ListJobs(pb.ListJobsRequest(page_size=2), timeout=30)
    rest = server.generation.ListJobs(
        pb.ListJobsRequest(page_size=2, page_token=first.next_page_token), timeout=30)
    assert [job.id for job in list(first.jobs) + list(rest.jobs)][:3] == ids[::-1]


def test_full_queue_refuses_and_takes_work_again(pb):
    with Server("--max_queued_jobs=1", "--policy=fifo", "--batching=off") as small:
        running = small.submit(**SLOW)
        small.wait_until(running.id, lambda j: j.state == pb.RUNNING)
        queued = small.submit(num_inference_steps=1)
        error = error_of(lambda: small.submit(num_inference_steps=1))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert field_and_reason(error)[1] == "QUEUE_FULL"
        small.generation.CancelJob(pb.CancelJobRequest(job_id=running.id), timeout=30)
        assert small.wait_for_end(queued.id).state == pb.SUCCEEDED
        assert small.wait_for_end(small.submit(num_inference_steps=1).id).state == pb.SUCCEEDED


def test_a_burst_over_a_full_queue_is_refused_with_a_time_to_come_back_and_leaves_nothing(pb, tmp_path):
    """A hundred at once over eight places: with the state on disk, as servers have it."""
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status
    with Server("--max_queued_jobs=8", "--max_running_jobs=1", f"--state_dir={tmp_path}") as small:
        running = small.submit(**SLOW)
        small.wait_until(running.id, lambda j: j.state == pb.RUNNING)

        def submit(_):
            try:
                return small.submit().id
            except grpc.RpcError as error:
                return error

        with concurrent.futures.ThreadPoolExecutor(25) as pool:
            answers = list(pool.map(submit, range(100)))
        taken = [answer for answer in answers if isinstance(answer, str)]
        refused = [answer for answer in answers if not isinstance(answer, str)]
        assert len(taken) == 8
        for error in refused:
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert field_and_reason(error)[1] == "QUEUE_FULL"
            hint = error_details_pb2.RetryInfo()
            assert any(detail.Unpack(hint) for detail in rpc_status.from_call(error).details)
            seconds = hint.retry_delay.seconds + hint.retry_delay.nanos / 1e9
            assert 1 <= seconds <= 600
            pushback = dict(error.trailing_metadata())["grpc-retry-pushback-ms"]
            assert int(pushback) == pytest.approx(seconds * 1000, abs=1)
        listed = small.generation.ListJobs(pb.ListJobsRequest(page_size=1000), timeout=30).jobs
        assert {job.id for job in listed} == {running.id, *taken}


@pytest.mark.parametrize("prompt", ["", "🐈 кошка 猫 قطة बिल्ली γάτα", "</s><extra_id_0>", "ｆｕｌｌ　ｗｉｄｔｈ"])
def test_prompts_of_all_kinds_run(server, pb, prompt):
    job = server.wait_for_end(server.submit(prompt, num_inference_steps=1).id)
    assert job.state == pb.SUCCEEDED, job.error
    assert job.prompt == prompt


def test_old_jobs_are_forgotten(pb):
    with Server("--max_finished_jobs=2") as small:
        ids = []
        for _ in range(3):
            ids.append(small.submit(num_inference_steps=1).id)
            small.wait_for_end(ids[-1])
        error = error_of(lambda: eventually(lambda: small.get(ids[0]) and None, timeout=5))
        assert error.code() == grpc.StatusCode.NOT_FOUND
        assert small.get(ids[2]).state == pb.SUCCEEDED
