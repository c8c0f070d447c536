"""Starting, stopping, health, reflection, and start-up mistakes."""

import json
import pathlib
import shutil
import signal
import subprocess
import time

import grpc
import pytest
import requests
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from harness import BIN, SLOW, Server, clean_environment, error_of, eventually, field_and_reason, model_repository


def page(server, path):
    session = requests.Session()
    session.trust_env = False
    return session.get(f"http://{server.http}{path}", timeout=30)


def start_and_fail(*flags, timeout=60):
    """A start that must not succeed: its exit code and what it said."""
    free = [f"--{name}=127.0.0.1:0" for name in ("listen", "admin_listen", "http_listen")
            if not any(flag.startswith(f"--{name}=") for flag in flags)]
    done = subprocess.run([str(BIN / "denoised"), *free, *flags], capture_output=True, text=True,
                          timeout=timeout, env=clean_environment())
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_ready_line_names_free_ports(server):
    words = server.ready_line.split()
    assert words[0] == "READY" and [word.split("=")[0] for word in words[1:]] == ["grpc", "admin", "http"]
    ports = {word.rsplit(":", 1)[1] for word in words[1:]}
    assert len(ports) == 3 and "0" not in ports


def test_health_and_pages(server):
    health = health_pb2_grpc.HealthStub(server.channel)
    for name in ("", "denoised.v1.GenerationService", "denoised.v1.DenoiseService", "denoised.v1.ModelService"):
        reply = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=30)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    error = error_of(lambda: health.Check(health_pb2.HealthCheckRequest(service="x"), timeout=30))
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert page(server, "/healthz").status_code == 200
    assert page(server, "/readyz").text == "ready\n"
    assert page(server, "/nothing").status_code == 404


def test_reflection_shows_each_ports_own_services(server):
    public = set(ProtoReflectionDescriptorDatabase(server.channel).get_services())
    admin = set(ProtoReflectionDescriptorDatabase(server.admin_channel).get_services())
    assert {"denoised.v1.GenerationService", "denoised.v1.DenoiseService", "denoised.v1.ModelService",
            "grpc.health.v1.Health"} <= public
    assert "denoised.v1.AdminService" in admin and "denoised.v1.AdminService" not in public
    file = ProtoReflectionDescriptorDatabase(server.channel).FindFileContainingSymbol(
        "denoised.v1.GenerationService.Generate")
    assert file.name == "denoised/v1/generation.proto"


def test_sigterm_lets_the_running_job_finish(pb):
    with Server() as server:
        job = server.submit(num_inference_steps=150)
        watch = server.generation.WatchJob(pb.WatchJobRequest(job_id=job.id), timeout=60)
        while next(watch).step < 1:
            pass
        server.process.send_signal(signal.SIGTERM)
        health = health_pb2_grpc.HealthStub(server.channel)
        end = time.monotonic() + 5
        while health.Check(health_pb2.HealthCheckRequest(), timeout=5).status != 2:
            assert time.monotonic() < end
        assert page(server, "/readyz").status_code == 503
        error = error_of(lambda: server.submit())
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert field_and_reason(error)[1] == "DRAINING"
        assert list(watch)[-1].state == pb.SUCCEEDED
        assert server.process.wait(timeout=10) == 0


def test_grace_is_bounded(pb):
    with Server("--drain_grace=500ms") as server:
        job = server.submit(**SLOW)
        server.wait_until(job.id, lambda j: j.step >= 1)
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=10) == 0
        assert time.monotonic() - start < 8


def test_second_signal_ends_at_once(pb):
    with Server("--drain_grace=60s") as server:
        job = server.submit(**SLOW)
        server.wait_until(job.id, lambda j: j.step >= 1)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: "server.draining" in server.read_log(), what="the first one's effect")
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(timeout=5)
        assert time.monotonic() - start < 5


def test_logs_are_json_lines_without_the_prompt(pb):
    with Server("--log_level=debug") as server:
        secret = "a very private prompt\n{\"level\":\"forged\"}"
        server.wait_for_end(server.submit(secret, num_inference_steps=1).id)
        eventually(lambda: "job_ended" in server.read_log(), what="the line about the job")
        lines = [line for line in server.read_log().splitlines() if line.startswith("{")]
        for line in lines:
            entry = json.loads(line)
            assert entry["level"] in ("debug", "info", "warning", "error")
        assert "private" not in server.read_log()


@pytest.mark.parametrize("flag, part", [
    ("--no_such_flag=1", "no_such_flag"), ("--listen=nonsense", "--listen"), ("--dtype=int4", "--dtype"),
    ("--threads=-1", "--threads"), ("--listen=0.0.0.0:0", "--insecure_public"),
    ("--config=/no/such.textproto", "/no/such.textproto"), ("--device=tpu", "--device")])
def test_wrong_flags_exit_2_with_one_line(flag, part):
    done = subprocess.run([str(BIN / "denoised"), flag], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert part in done.stderr and done.stderr.count("\n") == 1


def test_wrong_config_file_exits_2(tmp_path):
    (tmp_path / "c.textproto").write_text("listen: '127.0.0.1:0'\nlisen_admin: 'x'\n")
    done = subprocess.run([str(BIN / "denoised"), f"--config={tmp_path}/c.textproto"],
                          capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and "line 2" in done.stderr and done.stderr.count("\n") == 1


def test_config_file_starts_a_server(tmp_path, pb):
    (tmp_path / "c.textproto").write_text("max_queued_jobs: 7\ndrain_grace: '1s'\n")
    with Server(f"--config={tmp_path}/c.textproto") as server:
        assert server.wait_for_end(server.submit(num_inference_steps=1).id).state == pb.SUCCEEDED


def test_help_and_version():
    done = subprocess.run([str(BIN / "denoised"), "--help"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 and done.stderr == ""
    for flag in ("--model_repository", "--listen", "--admin_listen", "--http_listen", "--state_dir",
                 "--device", "--dtype", "--config", "127.0.0.1:50051"):
        assert flag in done.stdout
    done = subprocess.run([str(BIN / "denoised"), "--version"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 and done.stdout.startswith("denoised 0.")


def test_taken_port_is_an_error(server):
    code, text = start_and_fail(f"--model_repository={model_repository()}", f"--listen={server.public}")
    assert code == 1 and server.public in text


def copy_of_model(folder):
    shutil.copytree(model_repository() / "tiny", folder / "broken")
    return folder / "broken"


def cut_weights(model):
    path = next((model / "transformer").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1000])
    return path.name


def overlap_weights(model):
    path = next((model / "vae").glob("*.safetensors"))
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    names = [name for name in header if name != "__metadata__"]
    names.sort(key=lambda name: header[name]["data_offsets"][0])
    for name in names[1:]:  # the same length at the wrong place
        begin, end = header[name]["data_offsets"]
        header[name]["data_offsets"] = [0, end - begin]
        break
    fresh = json.dumps(header).encode().ljust(size)
    path.write_bytes(len(fresh).to_bytes(8, "little") + fresh + data[8 + size:])
    return path.name


def oversized_header(model):
    path = next((model / "text_encoder").glob("*.safetensors"))
    path.write_bytes((1 << 60).to_bytes(8, "little") + path.read_bytes()[8:])
    return path.name


def unknown_scheduler(model):
    path = model / "scheduler/scheduler_config.json"
    config = json.loads(path.read_text())
    config["_class_name"] = "MysteryScheduler"
    path.write_text(json.dumps(config))
    index = json.loads((model / "model_index.json").read_text())
    index["scheduler"][1] = "MysteryScheduler"
    (model / "model_index.json").write_text(json.dumps(index))
    return "MysteryScheduler"


def wrong_shape(model):
    path = model / "transformer/config.json"
    config = json.loads(path.read_text())
    config["ffn_dim"] += 8
    path.write_text(json.dumps(config))
    return "ffn"


def missing_component(model):
    shutil.rmtree(model / "vae")
    return "vae"


def broken_json(model):
    (model / "model_index.json").write_text("{\"_class_name\": ")
    return "model_index.json"


@pytest.mark.parametrize("damage", [cut_weights, overlap_weights, oversized_header, unknown_scheduler,
                                    wrong_shape, missing_component, broken_json])
def test_broken_models_are_named(tmp_path, damage):
    part = damage(copy_of_model(tmp_path))
    code, text = start_and_fail(f"--model_repository={tmp_path}")
    assert code == 1, text
    message = next(line for line in text.splitlines() if line.startswith("denoised: "))
    assert part in message


def test_empty_and_missing_repositories_are_errors(tmp_path):
    for folder in (tmp_path, pathlib.Path("/no/such/folder")):
        code, text = start_and_fail(f"--model_repository={folder}")
        assert code == 1 and str(folder) in text
