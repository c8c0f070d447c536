"""What was accepted outlives kill -9: jobs go on where they were, results stay, nothing is made twice."""

import json
import os
import signal
import subprocess
import time

import grpc
import harness
import pytest

SHAPES = harness.ROOT / "model_repository"
LONG = dict(prompt="a red circle moving left", num_inference_steps=60)


def start(state, *flags, **options):
    options.setdefault("repository", SHAPES)
    return harness.Server(f"--state_dir={state}", "--checkpoint_every=5", *flags, **options)


def kill(server):
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()


def request(pb, seed, **fields):
    return pb.GenerationRequest(seed=seed, formats=[pb.SAFETENSORS, pb.NPY], **(LONG | fields))


def results(server, pb, job_id):
    done = server.wait_for_end(job_id)
    assert done.state == pb.SUCCEEDED, done.error
    return server.fetch(job_id, pb.SAFETENSORS), server.fetch(job_id, pb.NPY), done


@pytest.fixture(scope="module")
def unbroken(pb, tmp_path_factory):
    """The results of seeds 1 to 4, drawn by a server that lives."""
    with start(tmp_path_factory.mktemp("state")) as server:
        ids = [server.generation.SubmitJob(request(pb, seed), timeout=30).id for seed in range(1, 5)]
        yield [results(server, pb, job_id) for job_id in ids]


def test_every_accepted_job_ends_with_the_same_bits_after_a_kill(pb, tmp_path, unbroken):
    with start(tmp_path) as server:
        ids = [server.generation.SubmitJob(request(pb, seed), timeout=30).id for seed in range(1, 5)]
        server.wait_until(ids[0], lambda job: job.step >= 12)
        kill(server)
    with start(tmp_path) as server:
        for job_id, expected in zip(ids, unbroken):
            latents, frames, done = results(server, pb, job_id)
            assert latents == expected[0] and frames == expected[1]
            assert done.receipt.fingerprint == expected[2].receipt.fingerprint
        first = server.get(ids[0])
        assert first.attempt == 2
        steps = [e for e in first.receipt.entries if e.role == "self"]
        assert min(e.first_step for e in steps) == 0 and max(e.last_step for e in steps) == 59


def test_a_job_goes_on_from_its_checkpoint_and_not_from_the_beginning(pb, tmp_path):
    with start(tmp_path) as server:
        job = server.generation.SubmitJob(request(pb, 1, num_inference_steps=400), timeout=30)
        server.wait_until(job.id, lambda j: j.step >= 200, timeout=200)
        kill(server)
    with start(tmp_path) as server:
        first = server.wait_until(job.id, lambda j: j.state == pb.RUNNING and j.step > 0)
        assert first.step > 100
        server.generation.CancelJob(pb.CancelJobRequest(job_id=job.id), timeout=30)
        assert server.wait_for_end(job.id).state == pb.CANCELLED


def test_a_killed_server_leaves_the_times_that_it_learnt(pb, tmp_path):
    from google.protobuf import duration_pb2
    times = tmp_path / "unit_times.json"
    hopeless = request(pb, 1, num_inference_steps=1000, time_limit=duration_pb2.Duration(seconds=1))
    with start(tmp_path) as server:
        server.wait_for_end(server.generation.SubmitJob(request(pb, 1, num_inference_steps=4), timeout=30).id)
        harness.eventually(times.exists, what="the file of unit times")
        kill(server)
    with start(tmp_path) as server:
        error = harness.error_of(lambda: server.generation.SubmitJob(hopeless, timeout=30))
        assert harness.field_and_reason(error)[1] == "DEADLINE_UNREACHABLE"
        kill(server)
    times.write_bytes(times.read_bytes()[:100])
    with start(tmp_path) as server:
        done = server.wait_for_end(server.generation.SubmitJob(request(pb, 1, num_inference_steps=4), timeout=30).id)
        assert done.state == pb.SUCCEEDED


def test_jobs_beyond_what_may_stay_in_memory_go_on_from_their_checkpoints(pb, tmp_path, unbroken):
    """With room for one job's latents a long one makes way for an urgent one, by way of the disk."""
    small = dict(height=32, width=32, prompt="a blue square", num_inference_steps=10)
    with start(tmp_path / "all") as server:
        urgent = results(server, pb, server.generation.SubmitJob(request(pb, 9, **small), timeout=30).id)
    with start(tmp_path / "one", "--max_resident_mib=1") as server:
        slow = server.generation.SubmitJob(request(pb, 1), timeout=30)
        server.wait_until(slow.id, lambda job: job.step >= 3)
        quick = server.generation.SubmitJob(request(pb, 9, priority=pb.URGENT, **small), timeout=30)
        for job_id, expected in ((quick.id, urgent), (slow.id, unbroken[0])):
            latents, frames, done = results(server, pb, job_id)
            assert (latents, frames) == expected[:2] and done.attempt == 1
            assert done.receipt.fingerprint == expected[2].receipt.fingerprint
        moved = [line for line in harness.page(server.http, "/metrics")[1].splitlines()
                 if line.startswith('denoised_jobs_put_away_total{model="shapes"}')]
        assert float(moved[0].split()[-1]) >= 1


def test_another_instruction_set_begins_anew_and_says_so(pb, tmp_path):
    with start(tmp_path) as server:
        job = server.generation.SubmitJob(request(pb, 1, num_inference_steps=200), timeout=30)
        server.wait_until(job.id, lambda j: j.step >= 20)
        harness.eventually((tmp_path / "checkpoints" / job.id).exists, what="its checkpoint")
        kill(server)
    with start(tmp_path, "--cpu_isa=avx2") as server:
        done = server.wait_for_end(job.id)
        assert done.state == pb.SUCCEEDED, done.error
        assert any("begun again from step 0" in note and "kernels" in note for note in done.receipt.notes)


def test_results_and_jobs_are_there_after_a_restart(pb, tmp_path, unbroken):
    with start(tmp_path) as server:
        job = server.generation.SubmitJob(request(pb, 1), timeout=30)
        before = results(server, pb, job.id)
        kill(server)
    with start(tmp_path) as server:
        after = server.get(job.id)
        assert after.state == pb.SUCCEEDED and after.receipt == before[2].receipt
        assert server.fetch(job.id, pb.NPY) == before[1] == unbroken[0][1]
        server.generation.DeleteJob(pb.DeleteJobRequest(job_id=job.id), timeout=30)
        assert harness.field_and_reason(harness.error_of(lambda: server.get(job.id)))[1] == "JOB_NOT_FOUND"
    left = [path for path in tmp_path.rglob("*") if path.is_file() and job.id in path.name]
    assert left == []


def test_a_key_makes_one_job_however_often_it_is_sent(pb, tmp_path):
    with start(tmp_path) as server:
        jobs = {server.generation.SubmitJob(request(pb, 1, idempotency_key="order-7"), timeout=30).id
                for _ in range(5)}
        kill(server)
    with start(tmp_path) as server:
        jobs.add(server.generation.SubmitJob(request(pb, 1, idempotency_key="order-7"), timeout=30).id)
        assert len(jobs) == 1
        error = harness.error_of(
            lambda: server.generation.SubmitJob(request(pb, 2, idempotency_key="order-7"), timeout=30))
        assert harness.field_and_reason(error)[1] == "IDEMPOTENCY_KEY"


def test_a_keyed_generate_outlives_its_calls_deadline(pb, tmp_path):
    fields = request(pb, 1, idempotency_key="order-8", num_inference_steps=200)
    with start(tmp_path) as server:
        error = harness.error_of(lambda: server.generation.Generate(fields, timeout=0.4))
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        job = server.generation.SubmitJob(fields, timeout=30)
        for options in ({}, {"timeout": 300}, {}):
            events = list(server.generation.Generate(fields, **options))
            last = [event.job for event in events if event.HasField("job")][-1]
            assert (last.id, last.state, last.attempt) == (job.id, pb.SUCCEEDED, 1)
            data = b"".join(event.chunk.data for event in events if event.HasField("chunk"))
            assert data == b"".join(server.fetch(job.id, form) for form in (pb.SAFETENSORS, pb.NPY))
        assert len(server.generation.ListJobs(pb.ListJobsRequest(), timeout=30).jobs) == 1


def test_a_second_server_on_the_folder_names_the_first(pb, tmp_path):
    with start(tmp_path) as server:
        second = subprocess.run(
            [str(harness.BIN / "denoised"), f"--model_repository={SHAPES}", f"--state_dir={tmp_path}",
             "--listen=127.0.0.1:0", "--admin_listen=127.0.0.1:0", "--http_listen=127.0.0.1:0"],
            capture_output=True, text=True, timeout=60, env=harness.clean_environment())
        assert second.returncode == 1
        assert str(server.process.pid) in second.stderr and str(tmp_path) in second.stderr


def test_a_stop_keeps_what_waits_and_what_runs(pb, tmp_path, unbroken):
    with start(tmp_path, "--drain_grace=300ms", "--batching=off") as server:
        ids = [server.generation.SubmitJob(request(pb, seed), timeout=30).id for seed in range(1, 5)]
        server.wait_until(ids[0], lambda job: job.step >= 3)
        watch = server.generation.WatchJob(pb.WatchJobRequest(job_id=ids[3]), timeout=60)
        server.process.send_signal(signal.SIGTERM)
        error = harness.error_of(lambda: watch)
        assert harness.field_and_reason(error)[1] == "DRAINING"
        assert server.process.wait(timeout=20) == 0
    with start(tmp_path) as server:
        for job_id, expected in zip(ids, unbroken):
            latents, frames, done = results(server, pb, job_id)
            assert (latents, frames) == expected[:2]
            assert done.receipt.fingerprint == expected[2].receipt.fingerprint


@pytest.mark.parametrize("end", (signal.SIGKILL, signal.SIGTERM))
def test_a_watch_lasts_over_a_restart_to_the_jobs_end(pb, tmp_path, end):
    listen = f"--listen=127.0.0.1:{harness.free_port()}"
    command = [str(harness.BIN / "denoisectl"), "watch", "--json", f"--server={listen.split('=')[1]}"]
    with start(tmp_path, listen, "--drain_grace=300ms") as server:
        job = server.generation.SubmitJob(request(pb, 1, num_inference_steps=400), timeout=30)
        watch = subprocess.Popen([*command, job.id], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                 env=harness.clean_environment())
        first = watch.stdout.readline()
        server.process.send_signal(end)
        server.process.wait(timeout=20)
    assert "waiting for the server" in watch.stderr.readline(), "it says so before there is another one"
    with start(tmp_path, listen):
        rest, complaints = watch.communicate(timeout=120)
    assert watch.returncode == 0, complaints
    told = [json.loads(line) for line in (first + rest).splitlines()]
    assert [state["state"] for state in told][-1] == "SUCCEEDED"
    sequences = [int(state["sequence"]) for state in told]
    assert sequences == sorted(set(sequences)), "it goes on after what it has seen"


def test_a_watch_without_patience_ends_with_its_server(pb, tmp_path):
    with start(tmp_path) as server:
        job = server.generation.SubmitJob(request(pb, 1, num_inference_steps=400), timeout=30)
        watch = subprocess.Popen([str(harness.BIN / "denoisectl"), "watch", "--patience=0s", "--json", job.id,
                                  f"--server={server.public}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                 text=True, env=harness.clean_environment())
        watch.stdout.readline()
        kill(server)
        _, complaints = watch.communicate(timeout=60)
    assert watch.returncode == 1 and "UNAVAILABLE" in complaints


def running(server, pb):
    jobs = server.generation.ListJobs(pb.ListJobsRequest(state=pb.RUNNING, page_size=50), timeout=30).jobs
    return {job.id for job in jobs}


def test_a_job_that_takes_the_server_down_twice_is_given_up_and_no_other(pb, tmp_path, unbroken):
    """Killed while it runs, as a job would that ends the process each time; the first time all run."""
    with start(tmp_path) as server:
        poison = server.generation.SubmitJob(request(pb, 3, num_inference_steps=1000, priority=pb.URGENT), timeout=30)
        beside = [server.generation.SubmitJob(request(pb, seed), timeout=30).id for seed in (1, 2)]
        harness.eventually(lambda: running(server, pb) == {poison.id, *beside}, what="all of them at once")
        kill(server)
    with start(tmp_path) as server:
        server.wait_until(poison.id, lambda job: job.state == pb.RUNNING and job.attempt == 2)
        assert running(server, pb) == {poison.id}, "each runs apart from the others now"
        kill(server)
    with start(tmp_path) as server:
        ended = server.get(poison.id)
        assert ended.state == pb.FAILED and ended.error.reason == "POISON"
        assert server.submit(model="shapes").state == pb.QUEUED
        for job_id, expected in zip(beside, unbroken):
            assert results(server, pb, job_id)[:2] == expected[:2]


def test_stops_that_are_cut_short_crash_no_job(pb, tmp_path):
    """A second signal at once, a second one later, and a supervisor that does not wait for the end."""
    long = request(pb, 1, num_inference_steps=200)
    with start(tmp_path / "whole") as server:
        expected = results(server, pb, server.generation.SubmitJob(long, timeout=30).id)
    ways = ((signal.SIGINT, 0), (signal.SIGTERM, 1), (signal.SIGKILL, 1))
    for life, (second, waits) in enumerate(ways, 1):
        with start(tmp_path / "cut", "--drain_grace=60s") as server:
            if life == 1:
                job = server.generation.SubmitJob(long, timeout=30)
            server.wait_until(job.id, lambda j: j.state == pb.RUNNING and j.attempt == life and j.step >= 1)
            server.process.send_signal(signal.SIGTERM)
            if waits:
                harness.eventually(lambda: "server.draining" in server.read_log(), what="the drain")
            began = time.monotonic()
            server.process.send_signal(second)
            code = server.process.wait(timeout=20)
            assert time.monotonic() - began < 5
            assert code in (128 + signal.SIGTERM, 128 + signal.SIGINT, -signal.SIGKILL), "it was cut short"
    with start(tmp_path / "cut") as server:
        latents, frames, done = results(server, pb, job.id)
        assert (latents, frames) == expected[:2] and done.attempt == len(ways) + 1
        assert done.receipt.fingerprint == expected[2].receipt.fingerprint


def test_kills_at_any_moment_lose_nothing(pb, tmp_path, unbroken):
    """Small jobs under kill -9 at any moment: what was acknowledged ends, once, with its bits."""
    small = dict(num_inference_steps=6)
    acknowledged = {}
    with start(tmp_path) as server:
        expected = {}
        for seed in range(1, 4):
            job = server.generation.SubmitJob(request(pb, seed, **small), timeout=30)
            expected[seed] = results(server, pb, job.id)[:2]
    for cycle in range(12):
        server = start(tmp_path)
        with server:
            for seed in range(1, 4):
                key = f"cycle-{cycle}-{seed}"
                job = server.generation.SubmitJob(request(pb, seed, idempotency_key=key, **small), timeout=30)
                assert acknowledged.setdefault(key, job.id) == job.id
            time.sleep(0.02 * cycle)
            kill(server)
    with start(tmp_path) as server:
        for key, job_id in acknowledged.items():
            done = server.wait_for_end(job_id)
            if done.state == pb.FAILED:
                assert done.error.reason == "POISON", done.error
                continue
            assert done.state == pb.SUCCEEDED, done.error
            seed = int(key.rsplit("-", 1)[1])
            assert (server.fetch(job_id, pb.SAFETENSORS), server.fetch(job_id, pb.NPY)) == expected[seed]
    assert not list(tmp_path.rglob("*.part"))
