"""denoisectl as a person types it."""

import json
import os
import signal
import socket
import subprocess

import numpy
import pytest
import safetensors.numpy
import torch

from harness import BIN, SLOW_FLAGS, clean_environment, ctl, eventually, model_repository

SIZE = ("--height=64", "--width=64", "--frames=5")
COMMANDS = ("generate", "submit", "jobs", "watch", "cancel", "fetch", "run", "attend", "models", "health",
            "backends", "explain", "force", "hold", "leases", "release", "drain", "log_level", "shadow", "drill",
            "load", "unload")


def generate(server, path, *flags, prompt="a red circle"):
    return ctl("generate", prompt, "-o", path, *SIZE, "--steps=2", "--seed=1", f"--server={server.public}",
               *flags)


def lines_of_json(done):
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("ending, magic", [("mp4", b"ftyp"), ("gif", b"GIF89a"), ("png", b"PNG"),
                                           ("npy", b"NUMPY"), ("safetensors", b"latents")])
def test_generate_writes_by_the_ending(server, tmp_path, ending, magic):
    path = tmp_path / f"out.{ending}"
    done = generate(server, path)
    assert done.returncode == 0, done.stderr
    assert magic in path.read_bytes()[:256]
    assert f"wrote {path} ({path.stat().st_size} bytes)" in done.stdout
    assert list(tmp_path.iterdir()) == [path], "nothing else is left"


def test_receipt_says_what_ran_and_why_others_did_not(server, tmp_path):
    done = generate(server, tmp_path / "a.gif", "--backend=NO_ATTENTION")
    assert done.returncode == 0, done.stderr
    assert "not NO_ATTENTION (request): " in done.stdout
    assert "steps 0-1" in done.stdout and "fingerprint" in done.stdout and "seed 1" in done.stdout
    progress = done.stderr.splitlines()
    assert any("steps" in line for line in progress), "plain lines where there is no terminal"
    assert "\r" not in done.stderr


def test_progress_is_a_bar_on_a_terminal(server, tmp_path):
    import pty
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [str(BIN / "denoisectl"), "generate", "p", "-o", str(tmp_path / "a.gif"), *SIZE, "--steps=20",
         f"--server={server.public}"], stderr=follower, stdout=subprocess.DEVNULL, env=clean_environment())
    os.close(follower)
    seen = b""
    while True:
        try:
            data = os.read(leader, 4096)
        except OSError:
            break
        if not data:
            break
        seen += data
    os.close(leader)
    assert process.wait(timeout=60) == 0
    assert b"\r" in seen and b"[###" in seen


def test_strict_refusal_exits_1_and_leaves_no_file(server, tmp_path):
    done = generate(server, tmp_path / "a.gif", "--backend=NO_ATTENTION", "--strict")
    assert done.returncode == 1
    assert "FAILED_PRECONDITION" in done.stderr and "NO_ATTENTION" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["/no/such/folder/a.mp4", "/proc/a.mp4"])
def test_unwritable_path_is_an_error_before_any_job(server, pb, path):
    before = server.generation.ListJobs(pb.ListJobsRequest(page_size=1), timeout=30).jobs
    done = generate(server, path)
    assert done.returncode == 1 and f"cannot write {path}" in done.stderr
    after = server.generation.ListJobs(pb.ListJobsRequest(page_size=1), timeout=30).jobs
    assert [job.id for job in before] == [job.id for job in after]


def test_folder_as_output_is_an_error(server, tmp_path):
    (tmp_path / "a.mp4").mkdir()
    done = generate(server, tmp_path / "a.mp4")
    assert done.returncode == 1 and "folder" in done.stderr


def test_failed_generate_keeps_the_old_file(server, tmp_path):
    path = tmp_path / "a.gif"
    path.write_bytes(b"precious")
    assert generate(server, path, "--model=nope").returncode == 1
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("arguments, part", [
    ((), "command is missing"), (("make",), "unknown command 'make'"), (("generate",), "argument is missing"),
    (("generate", "p"), "-o FILE"), (("generate", "p", "-o", "a.avi"), ".mp4"),
    (("generate", "p", "-o", "a.mp4", "--steps=x"), "--steps"),
    (("generate", "p", "-o", "a.mp4", "--stepz=3"), "--steps"),
    (("jobs", "extra"), "too many"), (("jobs", "--state=odd"), "QUEUED"),
    (("force",), "argument is missing"), (("force", "REFERENCE", "--ttl=5"), "--ttl"),
    (("force", "REFERENCE", "--scope=job"), "--scope"), (("release",), "--all"),
    (("attend",), "--backend"), (("fetch", "id"), "-o FILE")])
def test_wrong_use_exits_2_with_one_line(arguments, part):
    done = ctl(*arguments)
    assert done.returncode == 2, done.stderr
    assert part in done.stderr and done.stderr.count("\n") == 1 and done.stdout == ""


def test_help_of_everything():
    overview = ctl("--help")
    assert overview.returncode == 0
    for command in COMMANDS:
        assert f"\n  {command} " in overview.stdout
        done = ctl(command, "--help")
        assert done.returncode == 0 and f"Usage: denoisectl {command}" in done.stdout
        assert "--json" in done.stdout and done.stderr == ""


def test_no_server_is_an_error_that_names_the_address():
    done = ctl("health", "--server=127.0.0.1:1")
    assert done.returncode == 1 and "127.0.0.1:1" in done.stderr


def test_submit_watch_jobs_fetch(server, tmp_path):
    server_flag = f"--server={server.public}"
    done = ctl("submit", "a blue square", *SIZE, "--steps=3", "--formats=npy,gif", server_flag)
    job_id = done.stdout.strip()
    assert done.returncode == 0 and len(job_id) == 32
    watched = ctl("watch", job_id, server_flag)
    assert watched.returncode == 0 and "receipt of job " + job_id in watched.stdout
    listed = ctl("jobs", "--state=succeeded", server_flag)
    assert job_id in listed.stdout and "a blue square" in listed.stdout and "3/3" in listed.stdout
    for ending in ("npy", "gif"):
        assert ctl("fetch", job_id, "-o", tmp_path / f"a.{ending}", server_flag).returncode == 0
    assert numpy.load(tmp_path / "a.npy").shape == (5, 64, 64, 3)
    missing = ctl("fetch", job_id, "-o", tmp_path / "a.mp4", server_flag)
    assert missing.returncode == 1 and "NOT_FOUND" in missing.stderr
    assert not (tmp_path / "a.mp4").exists()


def test_cancel(server, pb):
    server_flag = f"--server={server.public}"
    job_id = ctl("submit", "p", *SLOW_FLAGS, server_flag).stdout.strip()
    assert ctl("cancel", job_id, server_flag).returncode == 0
    watched = ctl("watch", job_id, server_flag)
    assert watched.returncode == 1 and "CANCELLED" in watched.stderr
    again = ctl("cancel", job_id, server_flag)
    assert again.returncode == 1 and "FAILED_PRECONDITION" in again.stderr
    assert "NOT_FOUND" in ctl("cancel", "nope", server_flag).stderr


def test_interrupting_generate_cancels_its_job(server, pb, tmp_path):
    process = subprocess.Popen(
        [str(BIN / "denoisectl"), "generate", "to be interrupted", "-o", str(tmp_path / "a.mp4"), *SLOW_FLAGS,
         f"--server={server.public}"], stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env=clean_environment())

    def job():
        listed = server.generation.ListJobs(pb.ListJobsRequest(page_size=1), timeout=30).jobs
        return listed and listed[0].prompt == "to be interrupted" and listed[0].step > 0 and listed[0]

    found = eventually(job, what="the job")
    process.send_signal(signal.SIGINT)
    process.wait(timeout=10)
    assert server.wait_for_end(found.id, timeout=20).state == pb.CANCELLED


def test_interrupting_generate_under_a_key_leaves_its_job_to_the_same_command(server, pb, tmp_path):
    command = ["generate", "interrupted under a key", "-o", tmp_path / "a.gif", *SIZE, "--steps=600",
               "--idempotency_key=interrupted", f"--server={server.public}"]
    process = subprocess.Popen([str(BIN / "denoisectl"), *map(str, command)], stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True, env=clean_environment())

    def job():
        listed = server.generation.ListJobs(pb.ListJobsRequest(page_size=1), timeout=30).jobs
        return listed and listed[0].prompt == "interrupted under a key" and listed[0]

    found = eventually(job, what="the job")
    assert process.stderr.readline()  # the client knows of it, too
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=10)
    assert "the job goes on" in said and "--idempotency_key" in said and "cancels" not in said
    again = ctl(*command)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "a.gif").read_bytes().startswith(b"GIF89a")
    assert server.get(found.id).state == pb.SUCCEEDED and server.get(found.id).attempt == 1
    newest = server.generation.ListJobs(pb.ListJobsRequest(page_size=1), timeout=30).jobs[0]
    assert newest.id == found.id


def test_interrupted_before_an_answer_generate_does_not_say_that_there_is_a_job(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        command = ["generate", "nobody answers", "-o", tmp_path / "a.gif", "--idempotency_key=unanswered",
                   f"--server=127.0.0.1:{silent.getsockname()[1]}"]
        process = subprocess.Popen([str(BIN / "denoisectl"), *map(str, command)], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, text=True, env=clean_environment())
        with silent.accept()[0] as connection:
            assert connection.recv(1)  # it speaks: its hook for signals is there
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=10)
    assert "before the server answered" in said and "--idempotency_key" in said and "goes on" not in said


def test_json_is_the_messages_one_a_line(server, tmp_path):
    public, admin = f"--server={server.public}", f"--admin={server.admin}"
    events = lines_of_json(generate(server, tmp_path / "a.gif", "--json"))
    assert events[0]["job"]["state"] in ("QUEUED", "RUNNING")  # a stream may skip states
    states = [event["job"] for event in events if "job" in event]
    assert states[-1]["state"] == "SUCCEEDED" and states[-1]["num_steps"] == "2"
    assert states[-1]["receipt"]["entries"][0]["ran"]
    chunks = [event["chunk"] for event in events if "chunk" in event]
    assert chunks[0]["info"]["format"] == "GIF" and "data" not in chunks[0]
    assert lines_of_json(ctl("models", public, "--json"))[0]["models"][0]["name"] == "tiny"
    assert lines_of_json(ctl("health", public, "--json")) == [{"status": "SERVING"}]
    assert lines_of_json(ctl("jobs", "--limit=1", public, "--json"))[0]["jobs"][0]["state"] == "SUCCEEDED"
    assert lines_of_json(ctl("backends", admin, "--json"))[0]["backends"]
    roles = lines_of_json(ctl("explain", admin, "--json"))[0]["roles"]
    assert {role["role"] for role in roles} >= {"self", "cross"}
    lease = lines_of_json(ctl("force", "REFERENCE", "--ttl=1m", admin, "--json"))[0]
    assert lease["backend"] == "REFERENCE" and lease["scope"] == "server"
    assert lines_of_json(ctl("leases", admin, "--json"))[0]["leases"][0]["id"] == lease["id"]
    assert lines_of_json(ctl("release", lease["id"], admin, "--json")) == [{"released": 1}]


def test_operators_commands(server):
    admin = f"--admin={server.admin}"
    backends = ctl("backends", admin).stdout
    assert "TORCH_SDPA" in backends and "NO_ATTENTION" in backends
    explained = ctl("explain", "--backend=REFERENCE", "--height=64", "--width=64", "--frames=5", admin).stdout
    assert explained.startswith("self: REFERENCE\n") and "not TORCH_SDPA" in explained
    forced = ctl("force", "reference", "--ttl=1h", "--reason=why not", admin)
    lease = forced.stdout.split()[0]
    assert "forces REFERENCE" in forced.stdout
    listed = ctl("leases", admin).stdout
    assert lease in listed and "why not" in listed
    assert ctl("release", lease, admin).stdout == "released 1\n"
    assert ctl("release", lease, admin).returncode == 1
    assert ctl("release", "--all", admin).stdout == "released 0\n"
    refused = ctl("force", "NO_ATTENTION", admin)
    assert refused.returncode == 1 and "FAILED_PRECONDITION" in refused.stderr
    assert ctl("log_level", "warning", admin).stdout == "was info\n"
    assert ctl("log-level", "info", admin).stdout == "was warning\n"
    assert ctl("health", f"--server={server.public}").stdout == "SERVING\n"


def test_hold_lasts_as_long_as_the_command(server, pb):
    def held():
        return list(server.operator.ListLeases(pb.ListLeasesRequest(), timeout=30).leases)

    process = subprocess.Popen([str(BIN / "denoisectl"), "hold", "REFERENCE", f"--admin={server.admin}"],
                               stdout=subprocess.PIPE, text=True, env=clean_environment())
    assert "forces REFERENCE" in process.stdout.readline()
    assert [lease.backend for lease in held()] == ["REFERENCE"]
    process.send_signal(signal.SIGINT)
    process.wait(timeout=10)
    eventually(lambda: not held(), what="the end of the hold")
    process.stdout.close()


def test_run_gives_what_the_server_gives(server, tmp_path):
    assert generate(server, tmp_path / "served.npy").returncode == 0
    done = ctl("run", "a red circle", "-o", tmp_path / "local.npy", *SIZE, "--steps=2", "--seed=1",
               "--threads=1", "--dtype=float32", f"--model_repository={model_repository()}")
    assert done.returncode == 0, done.stderr
    assert "receipt of job" in done.stdout
    assert (tmp_path / "local.npy").read_bytes() == (tmp_path / "served.npy").read_bytes()


def test_run_names_a_missing_repository(tmp_path):
    done = ctl("run", "p", "-o", tmp_path / "a.gif", "--model_repository=/no/such/folder")
    assert done.returncode == 1 and "/no/such/folder" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("backend", ["REFERENCE", "TORCH_SDPA"])
def test_attend_equals_torch(tmp_path, backend):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, length, 3, 40, generator=generator) for length in (17, 33, 33))
    safetensors.numpy.save_file({"q": q.numpy(), "k": k.numpy(), "v": v.numpy()}, tmp_path / "qkv.safetensors")
    done = ctl("attend", f"--backend={backend}", f"--in={tmp_path}/qkv.safetensors",
               f"--out={tmp_path}/o.safetensors", "--json")
    assert lines_of_json(done)[0]["shape"] == [2, 17, 3, 40]
    ours = safetensors.numpy.load_file(tmp_path / "o.safetensors")["o"]
    expected = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
    numpy.testing.assert_allclose(ours, expected.transpose(1, 2).numpy(), rtol=2e-5, atol=2e-6)


def test_attend_says_why_a_backend_cannot(tmp_path):
    done = ctl("attend", "--backend=NO_ATTENTION", f"--in={tmp_path}/none", f"--out={tmp_path}/o")
    assert done.returncode == 1 and done.stderr.startswith("denoisectl: ")


def test_drained_server_is_seen(pb):
    from harness import Server
    with Server() as server:
        done = ctl("drain", f"--admin={server.admin}")
        assert done.returncode == 0 and "0 queued, 0 running" in done.stdout
        health = ctl("health", f"--server={server.public}")
        assert health.returncode == 1 and health.stdout == "NOT_SERVING\n"
