import json
import shutil
import zipfile
from pathlib import Path

import pytest

from handler.card import CARD_FILE, ModelCard
from server.store import StoreError, copy_archives, default_versions, find_archives
from tests.untrained import make_card


def write(file: Path, name: str, version: str = "1.0", card: str | None = None) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        manifest = {"model": {"modelName": name, "modelVersion": version}}
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        if card is not None:
            archive.writestr(CARD_FILE, card)
    return file


def test_all_archives_or_those_named(tmp_path: Path) -> None:
    write(tmp_path / "b.mar", "beta")
    write(tmp_path / "a.mar", "alpha", card=make_card("xor").to_json())
    assert [archive.name for archive in find_archives(tmp_path, ())] == ["alpha", "beta"]
    assert [archive.name for archive in find_archives(tmp_path, ("b",))] == ["beta"]
    (archive,) = find_archives(tmp_path, ("a.mar",))
    assert archive.card == make_card("xor")


def test_a_card_is_read_as_it_was_written() -> None:
    card = make_card("mnist", example={"instances": [[1.5]]}, metrics={"test": {"accuracy": 0.5}})
    assert ModelCard.from_json(card.to_json()) == card


def test_two_versions_of_a_model_but_not_the_same_twice(tmp_path: Path) -> None:
    write(tmp_path / "a.mar", "m", "1.0")
    write(tmp_path / "b.mar", "m", "2.0")
    assert len(find_archives(tmp_path, ())) == 2
    write(tmp_path / "c.mar", "m", "2.0")
    with pytest.raises(StoreError, match=r"b\.mar and .*c\.mar both hold model m 2\.0"):
        find_archives(tmp_path, ())


@pytest.mark.parametrize("card", ["{}", "[", '{"name": "x"}'])
def test_a_card_that_cannot_be_read(tmp_path: Path, card: str) -> None:
    write(tmp_path / "a.mar", "m", card=card)
    with pytest.raises(StoreError, match=r"archive .*a\.mar: "):
        find_archives(tmp_path, ())


def test_a_path_instead_of_a_name(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is a path: name archives only"):
        find_archives(tmp_path, (str(tmp_path / "a.mar"),))


def test_a_missing_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a directory: run `make train`"):
        find_archives(tmp_path / "none", ())


def test_the_highest_version_comes_first(tmp_path: Path) -> None:
    for index, version in enumerate(["1.0", "10.0", "9.1", "2.0rc1", "2.0"]):
        write(tmp_path / f"{index}.mar", "m", version)
    archives = find_archives(tmp_path, ())
    assert [a.version for a in archives] == ["10.0", "9.1", "2.0", "2.0rc1", "1.0"]
    assert default_versions(archives) == {"m": "10.0"}


@pytest.mark.parametrize(("name", "version"), [("a b", "1.0"), ("m", "1/0"), ("m\n", "1.0")])
def test_names_that_do_not_fit_a_path(tmp_path: Path, name: str, version: str) -> None:
    write(tmp_path / "a.mar", name, version)
    with pytest.raises(StoreError, match="has characters other than letters"):
        find_archives(tmp_path, ())


def test_an_archive_that_changes_while_being_copied(tmp_path: Path) -> None:
    write(tmp_path / "a.mar", "m")
    (archive,) = find_archives(tmp_path, ())
    (copy,) = copy_archives([archive], tmp_path / "copy")
    assert copy.file == tmp_path / "copy" / "a.mar"
    assert copy.file.read_bytes() == archive.file.read_bytes()
    write(tmp_path / "a.mar", "m", "2.0")
    with pytest.raises(StoreError, match=r"a\.mar is being written; try again"):
        copy_archives([archive], tmp_path / "another")


def test_an_archive_that_changes_while_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what was checked is copied: here the file is truncated right after that."""
    file = write(tmp_path / "a.mar", "m")
    close = zipfile.ZipFile.close

    def close_and_truncate(archive: zipfile.ZipFile) -> None:
        close(archive)
        file.write_bytes(b"")

    monkeypatch.setattr(zipfile.ZipFile, "close", close_and_truncate)
    archives = find_archives(tmp_path, ())
    with pytest.raises(StoreError, match="is being written; try again"):
        copy_archives(archives, tmp_path / "copies")


def test_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.mar", "m")
    (archive,) = find_archives(tmp_path, ())
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StoreError, match=r"cannot be copied to .*: 1048576 bytes of \d+"):
        copy_archives([archive], tmp_path / "copy")


def test_a_broken_compressed_stream(tmp_path: Path) -> None:
    file = tmp_path / "a.mar"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x", b"content" * 100)
    content = bytearray(file.read_bytes())
    content[30 + len("x")] = 0xFF  # a block of a type that deflate does not have
    file.write_bytes(content)
    with pytest.raises(StoreError, match=r"a\.mar is corrupt"):
        find_archives(tmp_path, ())
