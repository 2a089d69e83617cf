"""Making shards of one's own text: documents, tokens, texts that are none, and the command's exit codes."""

from __future__ import annotations

import json

import pytest

from amdahl_trainer.data.__main__ import main
from amdahl_trainer.data.shards import SPLITS, open_source
from amdahl_trainer.data.tokens import BytePairs, split_words
from amdahl_trainer.errors import Exit
from token_builders import read_back

TEXTS = [f"the {number}th text of the many texts that there are\n" * (number % 4 + 1) for number in range(120)]


@pytest.fixture
def texts(tmp_path):
    """A folder of texts, some in one `.jsonl`, and a file that is no text by its name."""
    home = tmp_path / "texts"
    (home / "deep").mkdir(parents=True)
    for number, text in enumerate(TEXTS[:60]):
        (home / "deep" / f"{number:03d}.txt").write_text(text)
    (home / "rest.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[60:]))
    (home / "picture.png").write_bytes(b"\xff\x00")
    return home


def tokens_of(source):
    """All documents of both splits."""
    return [document for split in SPLITS for document in read_back(source, split)]


def test_bytes_of_all_texts_are_in_the_shards(tmp_path, texts, capsys):
    """Each file is a document, as is each line of `.jsonl`; the summary tells how many."""
    assert main(["make", str(tmp_path / "mine"), str(texts), "--shard-tokens", "2000"]) == 0
    source = open_source(tmp_path / "mine")
    assert sorted(bytes(document).decode() for document in tokens_of(source)) == sorted(TEXTS)
    assert len(source.of("train")) > 1
    assert "vocabulary of 257; train " in capsys.readouterr().out
    assert main(["check", str(tmp_path / "mine")]) == 0


def test_learnt_byte_pairs_are_kept_with_the_shards(tmp_path, texts):
    """Tokens are those of the plain tokenizer with the merges that the vocabulary keeps, and stand for every byte."""
    assert main(["make", str(tmp_path / "mine"), str(texts), "--vocab-size", "300"]) == 0
    source = open_source(tmp_path / "mine")
    assert len(source.vocabulary.token_bytes) == 300
    plain = BytePairs(source.vocabulary.merges)
    found = tokens_of(source)
    assert sorted(found) == sorted(plain.encode(text.encode()) for text in TEXTS)
    size = sum(source.vocabulary.token_bytes[token] for document in found for token in document)
    assert size == sum(len(word) for text in TEXTS for word in split_words(text.encode()))


@pytest.mark.parametrize(
    ("bad", "where"),
    [
        (("broken.txt", b"good \xff bad"), r"broken.txt: no UTF-8 \(invalid start byte at byte 5\)"),
        (("broken.jsonl", b'{"text": "fine"}\nnone\n'), "broken.jsonl:2: no JSON object with a"),
        (("broken.jsonl", b'{"other": 1}\n'), "broken.jsonl:1: no JSON object with a"),
        (("broken.jsonl", b'{"text": 5}\n'), "broken.jsonl:1: no JSON object with a"),
        (("broken.jsonl", b'{"text": "\\ud800"}\n'), "broken.jsonl:1: no JSON object with a"),
    ],
)
def test_texts_that_are_none_end_the_command_or_are_passed_over_by_name(tmp_path, texts, capsys, bad, where):
    """Fail is the default; skip has a limit; nothing is left behind by a failure."""
    (texts / bad[0]).write_bytes(bad[1])
    mine = tmp_path / "mine"
    assert main(["make", str(mine), str(texts)]) == Exit.DATA
    error = capsys.readouterr().err
    assert where.replace("\\", "") in error
    assert "--bad-samples skip" in error
    assert main(["make", str(mine), str(texts), "--bad-samples", "skip", "--max-bad-samples", "0"]) == Exit.DATA
    assert "raise --max-bad-samples" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["texts"]
    assert main(["make", str(mine), str(texts), "--bad-samples", "skip"]) == 0
    assert "passed over" in capsys.readouterr().out
    assert {bytes(document).decode() for document in tokens_of(open_source(mine))} >= set(TEXTS)


def test_bad_requests_have_exit_codes_and_reasons(tmp_path, texts, capsys):
    """A folder that exists, a path that does not, a folder without text, and nothing to train on."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.txt").write_text("")
    for arguments, code, message in (
        (["make", str(texts), str(texts)], Exit.CONFIG, "exists; shards are written once"),
        (["make", str(tmp_path / "m"), str(tmp_path / "no")], Exit.CONFIG, "does not exist; name text files"),
        (["make", str(tmp_path / "m"), str(tmp_path / "empty")], Exit.CONFIG, "no text files in"),
        (["make", str(tmp_path / "m"), str(tmp_path / "blank.txt")], Exit.DATA, "holds no training documents"),
        (["check", str(tmp_path / "empty")], Exit.DATA, "holds no manifest.json"),
    ):
        assert main(arguments) == code, arguments
        assert message in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_a_vocabulary_below_the_bytes_is_refused(tmp_path, texts, capsys):
    """By the parser of arguments."""
    with pytest.raises(SystemExit):
        main(["make", str(tmp_path / "m"), str(texts), "--vocab-size", "200"])
    assert "bytes and the start of a document alone are 257" in capsys.readouterr().err
