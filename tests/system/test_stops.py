"""Stops that stop and starts that start: signals at any moment, taken ports, the phases of a drain."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from harness import (BIN, CHANNEL_OPTIONS, ROOT, SLOW, Server, clean_environment, ctl, error_of, eventually,
                     field_and_reason, free_port, model_repository, page)

# Decoded as raw float32: 13 MB, far more than the buffers between two ends hold.
LARGE = dict(width=256, height=256, num_frames=17, num_inference_steps=1)


@pytest.fixture(scope="module")
def many_models(tmp_path_factory):
    """A repository that takes long to load: one model, many times over."""
    folder = tmp_path_factory.mktemp("many")
    for i in range(60):
        shutil.copytree(model_repository() / "tiny", folder / f"tiny{i:02}", copy_function=os.link)
    return folder


class Starting:
    """A `denoised` that is not ready yet, on ports known beforehand."""

    def __init__(self, repository, wrapper=()):
        self.ports = [free_port() for _ in range(3)]
        self.public, self.admin, self.http = (f"127.0.0.1:{port}" for port in self.ports)
        self.process = subprocess.Popen(
            [*wrapper, str(BIN / "denoised"), f"--model_repository={repository}", f"--listen={self.public}",
             f"--admin_listen={self.admin}", f"--http_listen={self.http}", "--threads=1",
             "--state_dir=none"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment())
        eventually(self.answers, what="the HTTP port")

    def answers(self):
        assert self.process.poll() is None, self.process.communicate()
        try:
            return page(self.http, "/healthz")[0] == 200
        except OSError:
            return False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


# A shell gives SIGINT ignored to what it starts in the background.
IGNORES_SIGINT = ("sh", "-c", 'trap "" INT; exec "$@"', "sh")


@pytest.mark.parametrize("wrapper", [(), IGNORES_SIGINT])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_load_ends_it_at_once(many_models, number, wrapper):
    with Starting(many_models, wrapper) as server:
        assert page(server.http, "/readyz") == (503, "loading\n")
        start = time.monotonic()
        server.process.send_signal(number)
        out, log = server.process.communicate(timeout=10)
        assert time.monotonic() - start < 1.5
        assert server.process.returncode == 0
        assert out == "", "READY is never printed"
        assert "server.stopped_early" in log


def test_a_signal_at_any_moment_of_the_start_ends_it_and_counts_against_no_job(many_models, tmp_path, pb):
    flags = (f"--state_dir={tmp_path}", "--drain_grace=100ms")
    began = time.monotonic()
    with Server(*flags, repository=many_models) as server:
        takes = time.monotonic() - began
        job = server.submit(**SLOW)
        server.wait_until(job.id, lambda j: j.step >= 1)
        server.process.kill()
        server.process.wait()  # its first crash; the second would be its last
    seed = random.randrange(1 << 32)
    moments = random.Random(seed)
    loading, ready = ([moments.uniform(*span) for _ in range(5)] for span in ((0, takes), (takes, 1.3 * takes)))
    for delay in loading + ready:
        process = subprocess.Popen(
            [str(BIN / "denoised"), f"--model_repository={many_models}", "--threads=1", *flags,
             *(f"--{flag}=127.0.0.1:0" for flag in ("listen", "admin_listen", "http_listen"))],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment())
        time.sleep(delay)
        process.send_signal(signal.SIGTERM)
        out, log = process.communicate(timeout=5)
        # Before main there is nobody to catch it.
        assert process.returncode in (0, -signal.SIGTERM), (seed, delay, log)
        assert (out == "") == ("server.signal" not in log), (seed, delay, log)
    with Server(*flags, repository=many_models) as server:
        assert server.get(job.id).state != pb.FAILED, (seed, server.get(job.id).error)


def test_every_port_answers_while_models_load(many_models, pb):
    with Starting(many_models) as server:
        with grpc.insecure_channel(server.public, CHANNEL_OPTIONS) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for name in ("", "denoised.v1.GenerationService"):
                reply = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
                assert reply.status == health_pb2.HealthCheckResponse.NOT_SERVING
            error = error_of(lambda: pb.GenerationServiceStub(channel).SubmitJob(
                pb.GenerationRequest(prompt="x"), timeout=5))
            assert error.code() == grpc.StatusCode.UNAVAILABLE
            assert field_and_reason(error)[1] == "LOADING"
        assert page(server.http, "/healthz") == (200, "ok\n")
        assert page(server.http, "/metrics")[0] == 200
        assert server.process.poll() is None


@pytest.mark.parametrize("flag", ["listen", "admin_listen", "http_listen"])
def test_a_taken_port_is_found_before_any_load(server, flag):
    taken = {"listen": server.public, "admin_listen": server.admin, "http_listen": server.http}[flag]
    addresses = dict.fromkeys(("listen", "admin_listen", "http_listen"), "127.0.0.1:0") | {flag: taken}
    done = subprocess.run([str(BIN / "denoised"), f"--model_repository={model_repository()}",
                           *(f"--{name}={value}" for name, value in addresses.items())],
                          capture_output=True, text=True, timeout=60, env=clean_environment())
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"denoised: --{flag}: cannot listen on {taken}: Address already in use\n"


def test_a_failed_load_ends_the_process_although_clients_hold_on(tmp_path, many_models, pb):
    """The broken model comes last; a health watch and a half-open HTTP request are there by then."""
    for model in sorted(many_models.iterdir()):
        shutil.copytree(model, tmp_path / model.name, copy_function=os.link)
    shutil.copytree(model_repository() / "tiny", tmp_path / "zz_broken")
    (tmp_path / "zz_broken/model_index.json").write_text("{")
    for model in sorted(tmp_path.iterdir())[:-1]:  # all are broken, so that nothing is left to serve
        index = model / "vae/config.json"
        text = index.read_text()
        index.unlink()
        index.write_text(text + "}")
    with Starting(tmp_path) as server, grpc.insecure_channel(server.public, CHANNEL_OPTIONS) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        try:
            next(watch)
        except grpc.RpcError:
            pass  # it was faster than we
        out, log = server.process.communicate(timeout=30)
        assert server.process.returncode == 1 and out == ""
        assert "denoised: " in log


def test_a_result_that_is_being_fetched_arrives_whole(pb):
    with Server("--drain_grace=30s") as server:
        job = server.submit(formats=[pb.NPY], **LARGE)
        done = server.wait_for_end(job.id)
        size = done.artifacts[0].size_bytes
        assert size > 10 << 20
        chunks = server.generation.FetchArtifact(pb.FetchArtifactRequest(job_id=job.id), timeout=60)
        got = len(next(chunks).data)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: page(server.http, "/readyz")[0] == 503, what="the drain")
        for chunk in chunks:
            got += len(chunk.data)
            time.sleep(0.05)
        assert got == size
        assert server.process.wait(timeout=10) == 0


def test_a_result_may_be_fetched_after_the_signal(pb):
    with Server("--drain_grace=30s") as server:
        running = server.submit(num_inference_steps=60, formats=[pb.NPY])
        server.wait_until(running.id, lambda job: job.step >= 1)
        server.process.send_signal(signal.SIGTERM)
        done = server.wait_for_end(running.id)
        assert done.state == pb.SUCCEEDED
        time.sleep(1)  # a client that polls
        with grpc.insecure_channel(server.public, CHANNEL_OPTIONS) as channel:  # from anew
            fetched = pb.GenerationServiceStub(channel).FetchArtifact(
                pb.FetchArtifactRequest(job_id=running.id), timeout=30)
            assert sum(len(chunk.data) for chunk in fetched) == done.artifacts[0].size_bytes
        start = time.monotonic()
        assert server.process.wait(timeout=10) == 0
        assert time.monotonic() - start < 3, "nothing is left to wait for"


def test_generate_gets_its_whole_video_through_a_stop(pb):
    with Server("--drain_grace=60s") as server:
        events = server.generation.Generate(pb.GenerationRequest(prompt="x", formats=[pb.NPY], **LARGE),
                                            timeout=120)
        next(events)
        server.process.send_signal(signal.SIGTERM)
        size = got = 0
        for event in events:
            if event.WhichOneof("event") == "job" and event.job.artifacts:
                size = event.job.artifacts[0].size_bytes
            got += len(event.chunk.data)
        assert got == size > 10 << 20
        assert server.process.wait(timeout=10) == 0


def test_after_the_grace_everything_is_cancelled_and_watchers_see_it(pb):
    with Server("--drain_grace=1s") as server:
        running, queued = server.submit(**SLOW), server.submit(**SLOW)
        server.wait_until(running.id, lambda job: job.step >= 1)
        last = {}

        def watch(job_id):
            for job in server.generation.WatchJob(pb.WatchJobRequest(job_id=job_id), timeout=60):
                last[job_id] = job.state

        watchers = [threading.Thread(target=watch, args=(job.id,)) for job in (running, queued)]
        for watcher in watchers:
            watcher.start()
        eventually(lambda: len(last) == 2, what="both watchers")
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=20) == 0
        assert time.monotonic() - start < 3
        for watcher in watchers:
            watcher.join(timeout=10)
        assert last == {running.id: pb.CANCELLED, queued.id: pb.CANCELLED}


def test_the_grace_holds_inside_a_long_step(pb):
    """One step of this size takes many seconds here."""
    with Server("--drain_grace=1s") as server:
        job = server.submit(width=512, height=512, num_frames=65, num_inference_steps=3)
        server.wait_until(job.id, lambda j: j.stage == "denoise")
        time.sleep(0.5)
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=60) == 0
        assert time.monotonic() - start < 3


def test_a_client_that_reads_nothing_does_not_outlast_the_grace(pb):
    with Server("--drain_grace=1s") as server:
        job = server.submit(formats=[pb.NPY], **LARGE)
        server.wait_for_end(job.id)
        stuck = server.generation.FetchArtifact(pb.FetchArtifactRequest(job_id=job.id), timeout=60)
        next(stuck)
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=20) == 0
        assert time.monotonic() - start < 3


def test_a_stuck_log_stops_neither_the_server_nor_its_end(pb):
    reading, writing = os.pipe()
    try:
        with Server(stderr=writing) as server:
            level = pb.SetLogLevelRequest(level="info")
            for _ in range(12000):  # a line each; the pipe holds some hundreds, the queue some thousands
                server.operator.SetLogLevel(level, timeout=10)
            job = server.submit(num_inference_steps=1)
            assert server.wait_for_end(job.id).state == pb.SUCCEEDED
            server.fetch(job.id, pb.MP4)
            dropped = [line for line in page(server.http, "/metrics")[1].splitlines()
                       if line.startswith("denoised_log_lines_dropped_total ")]
            assert float(dropped[0].split()[1]) > 0
            start = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(timeout=20) == 0
            assert time.monotonic() - start < 3
    finally:
        os.close(reading)
        os.close(writing)


def test_no_server_is_left_when_its_test_is_killed():
    """pytest itself dies by SIGKILL in the middle of a test."""
    script = ("import sys, time; sys.path[:0] = ['tests', 'tests/system']; import tether, harness\n"
              "server = harness.Server(); print(server.process.pid, flush=True); time.sleep(600)")
    test = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True,
                            env=os.environ | {"DENOISED_BIN": str(BIN)})
    pid = int(test.stdout.readline())
    assert os.path.exists(f"/proc/{pid}")
    test.kill()
    test.communicate()

    def gone():
        try:
            with open(f"/proc/{pid}/stat", encoding="utf8") as status:
                return status.read().rsplit(")", 1)[1].split()[0] == "Z"  # nobody here reaps orphans
        except FileNotFoundError:
            return True

    eventually(gone, timeout=10, what="the end of the server")


def test_the_command_line_says_that_a_server_still_loads(many_models):
    with Starting(many_models) as server:
        done = ctl("models", f"--server={server.public}")
        assert done.returncode != 0 and "loading" in done.stderr
