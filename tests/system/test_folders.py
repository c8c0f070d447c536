"""Model folders as people have them: what serves, what is named as broken, and by which digest it is known."""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import urllib.request

import pytest

from harness import BIN, ROOT, Server, clean_environment, ctl

SHAPES = ROOT / "model_repository/shapes"
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
WEIGHTS = [TRANSFORMER, "text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"]
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 15723320\n"


def copy(target):
    """The shipped model, to be changed at will; what is large is linked until it is rewritten."""
    shutil.copytree(SHAPES, target, copy_function=os.link if os.stat(SHAPES).st_dev == os.stat(
        target.parent).st_dev else shutil.copy)
    return target


def rewrite(path, data):
    """Puts a new file in the place of a linked one."""
    path.unlink()
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def edit_json(path, **changes):
    rewrite(path, json.dumps(json.loads(path.read_text()) | changes))


def run(model, out, *flags):
    return ctl("run", "a red circle moving left", "--steps=1", "--seed=1", "-o", out,
               f"--model_repository={model}", *flags)


def refusal(model, tmp_path):
    """The message with which the folder is refused."""
    done = run(model, tmp_path / "refused.npy")
    assert done.returncode == 1, done.stderr
    return done.stderr


def picture(model, tmp_path, *flags):
    out = tmp_path / "picture.npy"
    done = run(model, out, *flags)
    assert done.returncode == 0, done.stderr
    return hashlib.sha256(out.read_bytes()).hexdigest(), done.stderr


def page(server, name):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(f"http://{server.http}/{name}", timeout=10).read().decode()


def models(server, pb):
    return server.models.ListModels(pb.ListModelsRequest(), timeout=10)


# ---- one bad folder among good ones


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    root = tmp_path_factory.mktemp("mixed")
    copy(root / "good")
    (copy(root / "pointer") / TRANSFORMER).unlink()
    (root / "pointer" / TRANSFORMER).write_text(POINTER)
    os.makedirs(os.fsencode(root) + b"/mod\xe8le")
    shutil.copy(SHAPES / "model_index.json", os.fsdecode(os.fsencode(root) + b"/mod\xe8le"))
    (root / "notes").mkdir()  # no model, no fault
    return root


def test_the_good_ones_serve_and_the_bad_ones_are_named(mixed, pb):
    with Server(repository=mixed) as server:
        reply = models(server, pb)
        assert [model.name for model in reply.models] == ["good"]
        assert reply.models[0].is_default
        failed = {model.name: model for model in reply.failed}
        assert set(failed) == {"pointer", "mod\\xe8le"}
        assert failed["pointer"].reason == "LFS_POINTER"
        assert TRANSFORMER in failed["pointer"].message and "git lfs pull" in failed["pointer"].message
        assert failed["mod\\xe8le"].reason == "BAD_MODEL_NAME"
        ready = page(server, "readyz").splitlines()
        assert ready[0] == "ready" and any("pointer: LFS_POINTER" in line for line in ready[1:])
        metrics = page(server, "metrics")
        assert 'denoised_model_load_failed{model="pointer",reason="LFS_POINTER"} 1' in metrics
        assert "denoised_models_failed 2" in metrics
        job = server.wait_for_end(server.submit(height=64, width=64, num_inference_steps=1).id)
        assert job.state == pb.SUCCEEDED
        shown = ctl("models", f"--server={server.public}")
        assert shown.returncode == 0 and "not loaded: pointer:" in shown.stdout


def start(*flags):
    command = [str(BIN / "denoised"), "--listen=127.0.0.1:0", "--admin_listen=127.0.0.1:0",
               "--http_listen=127.0.0.1:0", "--threads=1", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=clean_environment())


def test_strict_repository_ends_at_the_first_bad_one(mixed):
    done = start(f"--model_repository={mixed}", "--strict_repository")
    assert done.returncode == 1
    assert "mod\\xe8le" in done.stderr or "pointer" in done.stderr
    assert "READY" not in done.stdout


def test_where_all_are_bad_the_start_fails_and_names_each(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text("{}")
    done = start(f"--model_repository={tmp_path}")
    assert done.returncode == 1
    assert "one/model_index.json" in done.stderr and "two/model_index.json" in done.stderr


# ---- Hugging Face's cache


def hub(root, revision="0123456789abcdef0123456789abcdef01234567"):
    """As huggingface_hub lays it out: blobs, links to them, a reference."""
    repository = root / "hub/models--some-org--moving-shapes"
    snapshot = repository / "snapshots" / revision
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(revision)
    for path in sorted(p for p in SHAPES.rglob("*") if p.is_file()):
        data = path.read_bytes()
        blob = repository / "blobs" / hashlib.sha256(data).hexdigest()
        blob.write_bytes(data)
        link = snapshot / path.relative_to(SHAPES)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (root / "hub/models--some--language-model/snapshots/abc").mkdir(parents=True)
    (root / "hub/datasets--x").mkdir()
    return snapshot


def test_a_hugging_face_cache_is_a_repository_with_readable_names(tmp_path, pb):
    snapshot = hub(tmp_path)
    for repository in (tmp_path, tmp_path / "hub", snapshot.parent.parent, snapshot):
        with Server(repository=repository) as server:
            reply = models(server, pb)
            assert [model.name for model in reply.models] == ["some-org/moving-shapes"], repository
            assert not reply.failed
            job = server.submit(model="some-org/moving-shapes", height=64, width=64, num_inference_steps=1)
            assert server.wait_for_end(job.id).parameters.model == "some-org/moving-shapes"
    blob = (snapshot / TRANSFORMER).resolve()
    blob.rename(blob.with_name(blob.name + ".incomplete"))
    message = refusal(tmp_path / "hub", tmp_path)
    assert TRANSFORMER in message and "not complete" in message


# ---- digests


def digests(repository, pb, *flags):
    with Server(*flags, repository=repository) as server:
        model = models(server, pb).models[0]
        job = server.wait_for_end(server.submit(height=64, width=64, num_inference_steps=1).id)
        assert job.receipt.model_digest == model.model_digest
        assert job.receipt.weights_digest == model.weights_digest
        return model.model_digest, model.weights_digest


def test_every_file_that_is_read_is_in_the_model_digest(tmp_path, pb):
    model = copy(tmp_path / "m")
    seen = {digests(model, pb)}
    weights = {next(iter(seen))[1]}
    for name, changes in (("scheduler/scheduler_config.json", {"solver_order": 3}),
                          ("transformer/config.json", {"eps": 1e-5}),
                          ("tokenizer/tokenizer_config.json", {"note": "x"}),
                          ("denoised.json", {"attention_backend": "TORCH_SDPA"})):
        edit_json(model / name, **changes)
        now = digests(model, pb)
        assert now not in seen and now[1] in weights, name
        seen.add(now)
    (model / "README.md").write_text("not read")
    assert digests(model, pb) in seen
    # One byte in the middle of a large file, with size and time as they were.
    path = model / TRANSFORMER
    data, times = bytearray(path.read_bytes()), path.stat()
    data[len(data) // 2] ^= 1
    rewrite(path, bytes(data))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert digests(model, pb)[1] not in weights


def test_the_digests_of_weights_are_kept_in_the_state_folder(tmp_path, pb):
    model, state = copy(tmp_path / "m"), tmp_path / "state"
    first = digests(model, pb, f"--state_dir={state}")
    assert digests(model, pb, f"--state_dir={state}") == first
    kept = (state / "file_digests").read_text()
    for line in checksums(model).splitlines():
        digest, name = line.split("  ")
        assert (digest in kept) == name.endswith(".safetensors"), name


def checksums(folder):
    """What `sha256sum` prints of every file below a folder."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return subprocess.run(["sha256sum", *names], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_sha256sums_is_checked(tmp_path):
    model = copy(tmp_path / "m")
    text = checksums(model)
    sums = model / "SHA256SUMS"
    sums.write_text(text)
    picture(model, tmp_path)  # the list holds
    wrong = "0" * 64
    right = next(line.split()[0] for line in text.splitlines() if line.endswith(TRANSFORMER))
    rewrite(sums, text.replace(right, wrong))
    message = refusal(model, tmp_path)
    assert TRANSFORMER in message and right in message and wrong in message
    rewrite(sums, text + f"{wrong}  tokenizer/spiece.model\n")
    picture(model, tmp_path)  # nobody looks for it
    rewrite(sums, text + f"{wrong}  tokenizer/special_tokens_map.json\n")
    message = refusal(model, tmp_path)
    assert "special_tokens_map.json: SHA256SUMS lists it, and it is not there" in message
    rewrite(sums, f"{wrong}  ../m/model_index.json\n")
    assert "SHA256SUMS: line 1" in refusal(model, tmp_path)


# ---- which files


def with_variant(model, variant, names=WEIGHTS):
    for name in names:
        path = model / name
        path.rename(path.with_suffix(f".{variant}.safetensors"))


def test_variant_files_are_taken_when_they_are_all_there_is(tmp_path):
    model = copy(tmp_path / "m")
    plain, _ = picture(SHAPES, tmp_path)
    with_variant(model, "fp16")
    same, log = picture(model, tmp_path)
    assert same == plain
    assert "fp16" in log
    for name in WEIGHTS:  # a second variant: which one is no longer plain
        path = (model / name).with_suffix(".fp16.safetensors")
        shutil.copy(path, (model / name).with_suffix(".bf16.safetensors"))
    message = refusal(model, tmp_path)
    assert "bf16, fp16" in message and "--variant" in message
    assert picture(model, tmp_path, "--variant=bf16")[0] == plain
    done = run(model, tmp_path / "x.npy", "--variant=ema")
    assert done.returncode == 1 and "ema" in done.stderr
    done = run(SHAPES, tmp_path / "x.npy", "--variant=fp61")
    assert done.returncode == 1 and "fp61" in done.stderr
    done = run(SHAPES, tmp_path / "x.npy", "--variant=../x")
    assert done.returncode == 2 and "--variant" in done.stderr


def test_typos_in_denoised_json_are_refused_by_key(tmp_path):
    model = copy(tmp_path / "m")
    edit_json(model / "denoised.json", atention_backend="FLASH_ATTN")
    message = refusal(model, tmp_path)
    assert 'key "atention_backend" is not known (did you mean "attention_backend"?)' in message
    rewrite(model / "denoised.json", json.dumps({"defaults": {"heigth": 64}}))
    message = refusal(model, tmp_path)
    assert "denoised.json: defaults" in message and '"heigth"' in message and '"height"' in message


@pytest.mark.parametrize("change, wanted", [
    (lambda path: rewrite(path, POINTER), ["Git LFS", "git lfs pull"]),
    (lambda path: path.rename(path.with_suffix(".bin")), ["pickle", "safe_serialization"]),
    (lambda path: rewrite(path, b""), ["is empty", "fetch it again"]),
    (lambda path: rewrite(path, path.read_bytes()[:-1000]), ["reach past the end", "download that was cut"]),
    (lambda path: rewrite(path, path.read_bytes()[:6]), ["download that was cut"]),
    (lambda path: path.rename(path.with_name(path.name + ".incomplete")), ["not finished"]),
    (lambda path: rewrite(path, "<!DOCTYPE html><html>Sign in</html>"), ["web page"]),
    (lambda path: path.rename(path.with_name("diffusion_pytorch_model-00001-of-00002.safetensors")),
     ["index is missing"]),
], ids=["pointer", "pickle", "empty", "cut", "stub", "incomplete", "page", "no-index"])
def test_what_lies_in_the_place_of_weights_is_named(tmp_path, change, wanted):
    model = copy(tmp_path / "m")
    change(model / TRANSFORMER)
    message = refusal(model, tmp_path)
    assert str(pathlib.Path(TRANSFORMER).parent) in message
    for piece in wanted:
        assert piece in message


# ---- tokenizers that grow


def test_a_tokenizer_that_doubles_its_text_is_refused_at_loading(tmp_path):
    model = copy(tmp_path / "m")
    edit_json(model / "model_index.json", tokenizer=["transformers", "PreTrainedTokenizerFast"])
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    edit_json(model / "tokenizer/tokenizer.json",
              normalizer={"type": "Sequence", "normalizers": [double] * 40})
    message = refusal(model, tmp_path)
    assert "tokenizer.json" in message and "normalizer" in message and "Replace" in message
