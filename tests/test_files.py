"""Files that are written whole or not at all."""

import os
import stat

import pytest

from hetconv_cli.errors import ArgumentError, HetconvError
from hetconv_cli.files import check_target, replacing


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_text("old")
    return path


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- before any work ---


def test_a_new_file_in_a_folder_is_fine_and_nothing_is_left_by_asking(tmp_path):
    check_target(tmp_path / "new", overwrite=False)
    check_target(tmp_path / "new", overwrite=True)
    assert names(tmp_path) == []


def test_an_existing_file_is_refused_with_what_to_do(old):
    with pytest.raises(
        ArgumentError, match=r"net\.safetensors exists: pass --force to replace it, or name another file"
    ):
        check_target(old, overwrite=False)


def test_an_existing_file_may_be_overwritten_where_that_was_asked(old):
    check_target(old, overwrite=True)
    assert old.read_text() == "old"


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_that_is_missing_is_named(tmp_path, overwrite):
    with pytest.raises(ArgumentError, match=r"missing/net: no such folder: .*missing$"):
        check_target(tmp_path / "missing" / "net", overwrite)
    assert names(tmp_path) == []


def test_a_file_is_no_folder(old):
    with pytest.raises(ArgumentError, match="no such folder"):
        check_target(old / "net", overwrite=True)


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_is_no_target(tmp_path, overwrite):
    with pytest.raises(ArgumentError, match="is a folder; name a file"):
        check_target(tmp_path, overwrite)


def test_a_folder_that_cannot_be_written_is_found_out_by_trying(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("hetconv_cli.files.tempfile.TemporaryFile", refuse)
    with pytest.raises(ArgumentError, match=r"net: cannot write in .*: Permission denied"):
        check_target(tmp_path / "net", overwrite=False)


# --- while it is written ---


def test_the_file_takes_its_name_when_the_block_is_done(tmp_path):
    target = tmp_path / "net"
    with replacing(target) as temporary:
        assert temporary.parent == tmp_path
        assert not target.exists()
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert names(tmp_path) == ["net"]


def test_an_old_file_stays_until_the_new_one_is_whole(old):
    with replacing(old) as temporary:
        temporary.write_text("new")
        assert old.read_text() == "old"
    assert old.read_text() == "new"
    assert names(old.parent) == [old.name]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, HetconvError, MemoryError])
def test_nothing_is_left_behind_when_the_block_fails(tmp_path, error):
    def write() -> None:
        with replacing(tmp_path / "net") as temporary:
            temporary.write_text("half")
            raise error("in the middle")

    with pytest.raises(error, match="in the middle"):
        write()
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_an_old_file_is_untouched_when_the_block_fails(old, error):
    def write() -> None:
        with replacing(old) as temporary:
            temporary.write_text("half")
            raise error("in the middle")

    with pytest.raises((error, HetconvError), match="in the middle"):
        write()
    assert old.read_text() == "old"
    assert names(old.parent) == [old.name]


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path):
    def write() -> None:
        with replacing(tmp_path / "net"):
            raise OSError(28, "No space left on device")

    with pytest.raises(HetconvError, match=r"net: could not be written: No space left on device$") as caught:
        write()
    assert caught.value.exit_status == 1
    assert names(tmp_path) == []


def test_a_folder_that_went_away_is_one_line(tmp_path):
    def write() -> None:
        with replacing(tmp_path / "missing" / "net"):
            raise AssertionError("not reached")

    with pytest.raises(HetconvError, match=r"missing/net: could not be written: No such file"):
        write()


def test_a_name_of_the_longest_kind_that_the_system_takes_can_be_written(tmp_path):
    target = tmp_path / ("n" * 250)
    check_target(target, overwrite=False)
    with replacing(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"


def test_a_name_that_the_system_does_not_take_is_one_line(tmp_path):
    with pytest.raises(ArgumentError, match=r"n: .*[Nn]ame too long"):
        check_target(tmp_path / ("n" * 300), overwrite=False)


@pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX's")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_permission_bits_are_those_of_an_ordinary_new_file(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "net") as temporary:
            assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
        (tmp_path / "plain").write_text("")
        assert os.umask(umask) == umask  # and the umask is as it was
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "net").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "plain").stat().st_mode) == mode
