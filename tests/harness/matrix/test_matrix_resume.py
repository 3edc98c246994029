"""profile-matrix --resume of a folder that somebody else may have written."""

from __future__ import annotations

import json
import os
import pwd
import shutil
from pathlib import Path

import pytest

from harness.commands import matrix as cli_matrix
from harness.matrix import seal as matrix_seal
from harness.matrix import store as matrix_store

QUICK = ["--connections", "100", "--hold", "0", "--probes", "none", "--workers", "1"]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to other users")


@pytest.fixture(autouse=True)
def called_by_nobody(monkeypatch):
    """Who runs the tests by sudo stands behind none of their commands."""
    for name in ("SUDO_UID", "SUDO_GID", "SUDO_USER", "DOAS_USER", "PKEXEC_UID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def key(tmp_path, monkeypatch):
    """A key of the test's own, in the place of this user's."""
    monkeypatch.setattr(matrix_seal, "_folder_of", lambda uid: tmp_path / f"state-{uid}")
    return lambda: [each.unlink() for each in tmp_path.glob(f"state-*/{matrix_seal.KEY_FILE}")]


@pytest.fixture
def profile_matrix(call):
    return lambda *arguments: call(cli_matrix.main, *arguments)


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """A matrix that was planned by the command and has run nothing."""

    def plan(*arguments: str) -> Path:
        with monkeypatch.context() as patch:
            patch.setattr(cli_matrix, "_run", lambda _, matrix: matrix.save() or 0)
            code = cli_matrix.profile_matrix(
                [*arguments[: arguments.index("--") if "--" in arguments else None],
                 "--no-report", "--output", str(tmp_path / "runs"),
                 *arguments[arguments.index("--") if "--" in arguments else len(arguments) :]]
            )  # fmt: skip
        assert code == 0
        (path,) = (tmp_path / "runs").glob("*-matrix-*")
        return path

    return plan


@pytest.fixture
def admitted(monkeypatch):
    """The matrices that were let in: what their rows do then is no matter of whose they are."""
    asked = []
    monkeypatch.setattr(cli_matrix, "_run", lambda _, matrix: asked.append(matrix) or 0)
    return asked


def change(path: Path, edit) -> None:
    document = json.loads((path / "matrix.json").read_text())
    edit(document)
    (path / "matrix.json").write_text(json.dumps(document))


def poison(path: Path, proof: Path) -> None:
    """What a colleague's archive would have in the place of honest words."""

    def edit(document):
        words = ["--connections", "1", "--server-cmd", f"touch {proof}", "--server-user", "root"]
        document["rows"][0]["words"] = words

    change(path, edit)


VARIED = ("--vary", "workers=1", "--", *QUICK[:-2])


def test_a_command_out_of_somebody_elses_file_is_never_run(tmp_path, planned, profile_matrix):
    path, proof = planned(*VARIED), tmp_path / "proof"
    poison(path, proof)
    done = profile_matrix("--resume", path)
    assert done.returncode == 2, done.stdout + done.stderr
    error, fix = done.stderr.splitlines()
    assert "not written by this user on this host" in error
    assert f"profile-matrix --resume {path} --list" in fix
    assert not proof.exists()
    assert not list((path / "rows").iterdir())


def test_its_commands_can_be_looked_at(tmp_path, planned, profile_matrix):
    path, proof = planned(*VARIED), tmp_path / "proof"
    poison(path, proof)
    done = profile_matrix("--resume", path, "--list")
    assert done.returncode == 0, done.stderr
    assert f"--server-cmd 'touch {proof}'" in done.stdout
    assert not proof.exists()


def test_named_again_a_changed_row_is_told_and_not_run(tmp_path, planned, profile_matrix):
    path, proof = planned(*VARIED), tmp_path / "proof"
    poison(path, proof)
    done = profile_matrix("--resume", path, *VARIED)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "row workers=1" in done.stderr
    assert f"touch {proof}" in done.stderr
    assert "--vary says --connections 100" in done.stderr
    assert not proof.exists()


def test_what_this_user_began_here_goes_on_by_one_command(planned, profile_matrix):
    path = planned(*VARIED)
    done = profile_matrix("--resume", path)
    assert done.returncode == 0, done.stderr
    assert "runs  profile-run --connections 100" in done.stderr
    assert [o["state"] for o in matrix_content(path)["outcomes"]] == ["done"]


def test_a_honest_folder_of_another_host_goes_on_when_its_plan_is_named(
    planned, profile_matrix, key
):
    path = planned(*VARIED)
    key()
    refused = profile_matrix("--resume", path)
    assert refused.returncode == 2, refused.stderr
    done = profile_matrix("--resume", path, *VARIED)
    assert done.returncode == 0, done.stderr
    assert [o["state"] for o in matrix_content(path)["outcomes"]] == ["done"]
    again = profile_matrix("--resume", path)  # by then this user has written it
    assert again.returncode == 0, again.stderr


def matrix_content(path: Path) -> dict:
    return json.loads((path / "matrix.json").read_text())


def test_rows_of_a_shipped_scenario_need_no_key(planned, profile_matrix, key, admitted):
    path = planned("the-2016-log", "--only", "r07*")
    key()
    done = profile_matrix("--resume", path)
    assert done.returncode == 0, done.stderr
    stored = matrix_content(path)
    assert [list(row.words) for row in admitted[0].rows] == [row["words"] for row in stored["rows"]]
    assert [row.spec.against for row in admitted[0].rows] == ["", "r05-eaddrnotavail"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d["rows"][0]["words"].extend(["--server-cmd", "true"]),
        lambda d: d["rows"][0].update(client_nofile=12),
        lambda d: d["rows"][0]["spec"].update(id="another"),
        lambda d: d.update(rows=[]),
        lambda d: d.update(name="every-cause"),
    ],
    ids=["words", "limit", "id", "none", "another scenario"],
)
def test_a_shipped_scenario_that_was_changed_is_not_run(planned, profile_matrix, admitted, edit):
    path = planned("the-2016-log", "--only", "r07*")
    change(path, edit)
    done = profile_matrix("--resume", path)
    assert done.returncode in {2, 5}, done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert not admitted


@pytest.mark.parametrize("name", ["", "matrix.json", "rows", "logs"])
def test_what_others_can_write_is_refused(planned, profile_matrix, admitted, name):
    path = planned(*VARIED)
    place = path / name
    place.chmod(place.stat().st_mode | 0o020)
    done = profile_matrix("--resume", path)
    assert done.returncode == 2, done.stderr
    error, fix = done.stderr.splitlines()
    assert "can be written by other users" in error
    assert fix.endswith(f"chmod go-w {place}")
    assert not admitted
    place.chmod(place.stat().st_mode & ~0o022)
    assert profile_matrix("--resume", path).returncode == 0
    assert len(admitted) == 1


@as_root
@pytest.mark.parametrize("name", ["", "matrix.json", "rows"])
def test_what_belongs_to_another_user_is_refused(
    planned, profile_matrix, name, admitted, monkeypatch
):
    path = planned(*VARIED)
    nobody = pwd.getpwnam("nobody")
    os.chown(path / name, nobody.pw_uid, nobody.pw_gid)
    done = profile_matrix("--resume", path)
    assert done.returncode == 2, done.stderr
    assert "belongs to user nobody" in done.stderr
    assert not admitted
    monkeypatch.setenv("SUDO_UID", str(nobody.pw_uid))  # now it is who called sudo
    assert profile_matrix("--resume", path).returncode == 0
    assert len(admitted) == 1


@pytest.mark.parametrize("name", ["matrix.json", "matrix.html", "rows", "logs"])
def test_a_link_in_it_is_not_followed(tmp_path, planned, profile_matrix, name):
    path, elsewhere = planned(*VARIED), tmp_path / "elsewhere"
    if (path / name).exists():
        (path / name).rename(elsewhere)
    else:
        elsewhere.write_text("kept")
    (path / name).symlink_to(elsewhere)
    done = profile_matrix("--resume", path)
    assert done.returncode == 2, done.stderr
    assert "links are not followed" in done.stderr


def test_a_link_in_the_place_of_a_rows_log_is_replaced(tmp_path, planned, profile_matrix):
    path, victim = planned(*VARIED), tmp_path / "victim"
    victim.write_text("kept")
    for ending in ("log", "json"):
        (path / "logs" / f"00-workers-1-1.{ending}").symlink_to(victim)
    assert profile_matrix("--resume", path).returncode == 0
    assert victim.read_text() == "kept"


@pytest.mark.parametrize(
    "text",
    [
        "[]", "null", "[" * 100_000, '{"schema_version": 1, "rows": 3}',
        '{"schema_version": 1, "name": 1, "shows": 1, "argv": [], "seed": 1, "repeats": 1, '
        '"scale": {}, "rows": [], "order": [["no such row", 1]], "host": {}, "outcomes": [], '
        '"status": "running", "is_varied": false, "started": ""}',
    ],
    ids=["list", "null", "deep", "number", "order"],
)  # fmt: skip
def test_a_file_of_another_form_is_two_lines(tmp_path, profile_matrix, text):
    (tmp_path / "matrix.json").write_text(text)
    done = profile_matrix("--resume", tmp_path)
    assert done.returncode == 5, done.stderr
    assert len(done.stderr.splitlines()) == 2


@pytest.fixture(scope="module")
def finished(tmp_path_factory, call):
    """A matrix of one row that has run, sealed by a key that nobody has any more."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrix_seal, "_folder_of", lambda uid: folder / f"state-{uid}")
        done = call(cli_matrix.main, *VARIED[:2], "--no-report", "--output", folder, *VARIED[2:])
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*-matrix-*")
    return path


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d["outcomes"][0].update(facts={"lost_connections": "many"}),
        lambda d: d["outcomes"][0].update(verdict=[]),
        lambda d: d["host"].update(memory_total_bytes="a lot"),
        lambda d: d["rows"][0]["spec"].update(options=3),
    ],
    ids=["facts", "verdict", "host", "options"],
)
def test_what_a_strangers_runs_came_to_is_understood_before_anything_runs(
    tmp_path, finished, profile_matrix, edit
):
    path = tmp_path / finished.name
    shutil.copytree(finished, path, symlinks=True)
    change(path, edit)
    before = matrix_content(path)
    done = profile_matrix("--resume", path, *VARIED)
    assert done.returncode == 5, done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert matrix_content(path) == before


@pytest.mark.parametrize("run", ["../../etc", "rows/../../etc", "/etc", "rows/a/b"])
def test_a_run_outside_of_it_is_refused(planned, run):
    path = planned(*VARIED)
    outcome = {"row": "workers=1", "repeat": 1, "state": "done", "took_s": 1.0, "run": run}
    change(path, lambda document: document["outcomes"].append(outcome))
    with pytest.raises(Exception, match="is not below rows/"):
        matrix_store.load(path)


def test_what_is_only_sent_is_in_no_file_of_it_and_asked_for_again(
    planned, profile_matrix, admitted
):
    secret = "Authorization: Bearer eyJhbGci"
    asked_with = (*VARIED, "--header", secret, "--path", "/chat?token=eyJhbGci")
    path = planned(*asked_with)
    for file in (each for each in path.rglob("*") if each.is_file()):
        assert b"eyJhbGci" not in file.read_bytes(), file
    refused = profile_matrix("--resume", path)
    assert refused.returncode == 2, refused.stderr
    assert "sends values that are kept in no file" in refused.stderr
    assert not admitted
    done = profile_matrix("--resume", path, *asked_with)
    assert done.returncode == 0, done.stderr
    assert secret in admitted[0].rows[0].words
    assert "eyJhbGci" not in done.stderr


def test_a_secret_cannot_become_the_name_of_a_row(tmp_path, profile_matrix):
    done = profile_matrix(
        *("--vary", "header=A: secret,B: secret", "--output", tmp_path, "--", *QUICK)
    )
    assert done.returncode == 2, done.stderr
    assert "secret" not in done.stderr


def test_only_its_own_user_can_read_the_key(tmp_path, planned):
    planned(*VARIED)
    (key,) = tmp_path.glob(f"state-*/{matrix_seal.KEY_FILE}")
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.parent.stat().st_mode & 0o777 == 0o700
    assert len(key.read_bytes()) == 32


@pytest.mark.parametrize("spoil", [lambda k: k.chmod(0o644), lambda k: k.write_bytes(b"short")])
def test_a_key_that_others_may_know_seals_nothing(tmp_path, planned, profile_matrix, spoil):
    path = planned(*VARIED)
    (key,) = tmp_path.glob(f"state-*/{matrix_seal.KEY_FILE}")
    spoil(key)
    assert not matrix_store.load(path).is_own


@as_root
def test_root_goes_on_with_what_who_called_sudo_has_sealed(
    planned, profile_matrix, admitted, monkeypatch
):
    path = planned(*VARIED)
    nobody = pwd.getpwnam("nobody")
    mine, theirs = (matrix_seal._folder_of(uid) for uid in (0, nobody.pw_uid))
    mine.rename(theirs)
    for each in (path, *path.rglob("*"), theirs, theirs / matrix_seal.KEY_FILE):
        os.chown(each, nobody.pw_uid, nobody.pw_gid)
    assert profile_matrix("--resume", path).returncode == 2
    assert not admitted
    monkeypatch.setenv("SUDO_UID", str(nobody.pw_uid))
    assert profile_matrix("--resume", path).returncode == 0
    assert len(admitted) == 1
