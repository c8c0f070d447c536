"""`cmake --install`: programs that run from anywhere, with the model that they find by themselves."""

import subprocess

import pytest

import harness
from harness import BIN, clean_environment

BUILD = BIN.parent


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    place = tmp_path_factory.mktemp("installed") / "usr local"
    subprocess.run(["cmake", "--install", str(BUILD), "--prefix", str(place)], check=True, timeout=120,
                   stdout=subprocess.DEVNULL)
    return place


def run(program, *words, **options):
    return subprocess.run([str(program), *map(str, words)], capture_output=True, text=True, timeout=120,
                          env=clean_environment(), **options)


def test_what_is_installed(prefix):
    assert {path.name for path in (prefix / "bin").iterdir()} == {"denoised", "denoisectl"}
    assert (prefix / "share/denoised/model_repository/shapes/model_index.json").exists()
    assert (prefix / "share/doc/denoised/LICENSE").read_text() == (harness.ROOT / "LICENSE").read_text()
    assert not (prefix / "lib").exists(), "LibTorch comes with the component of its name only"


def test_it_draws_from_another_folder(prefix, tmp_path):
    done = run(prefix / "bin/denoisectl", "run", "a red circle", "-o", "a.gif", "--steps=1", "--threads=1",
               cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "model        shapes" in done.stdout
    assert (tmp_path / "a.gif").read_bytes().startswith(b"GIF89a")


def test_the_server_finds_the_model_through_a_link_to_it(prefix, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/denoised").symlink_to(prefix / "bin/denoised")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(harness, "BIN", tmp_path / "bin")
    with harness.Server(repository="") as server:
        models = server.models.ListModels(harness.stubs().ListModelsRequest(), timeout=30).models
        assert [model.name for model in models] == ["shapes"]


def test_its_own_libtorch_comes_first(prefix, tmp_path):
    own = prefix / "lib/denoised"
    own.mkdir(parents=True)
    try:
        libraries = run("ldd", prefix / "bin/denoisectl").stdout
        found = next(line.split()[2] for line in libraries.splitlines() if "libtorch_cpu.so" in line)
        (own / "libtorch_cpu.so").symlink_to(found)
        assert "/bin/../lib/denoised/libtorch_cpu.so" in run("ldd", prefix / "bin/denoisectl").stdout
    finally:
        (own / "libtorch_cpu.so").unlink()
        own.rmdir()
        own.parent.rmdir()


@pytest.mark.parametrize("program, words", [
    ("denoised", ("--listen=127.0.0.1:0", "--admin_listen=127.0.0.1:0", "--http_listen=127.0.0.1:0")),
    ("denoisectl", ("run", "p", "-o", "a.gif"))])
def test_without_a_model_it_says_where_it_looked(tmp_path, program, words):
    done = run(BIN / program, *words, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"{tmp_path}/model_repository" in done.stderr
    assert f"{BUILD}/share/denoised/model_repository" in done.stderr
    assert "--model_repository=DIR" in done.stderr
    assert list(tmp_path.iterdir()) == []
