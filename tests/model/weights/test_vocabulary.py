"""A tokenizer whose ids have no embedding is refused when the model is built, from headers alone; one token that is never given is not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

from rb.cli import main
from rb.core.run_file import to_tree
from rb.model.weights.build import build_model
from tests.support import tiny


def change_tokenizer(folder: str, **special: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(folder)


def test_ids_without_an_embedding_are_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foundation = tiny.write_foundation(tmp_path)
    config = tiny.model_config(foundation)
    tokenizer = AutoTokenizer.from_pretrained(foundation.blip2, local_files_only=True)
    tokenizer.add_tokens(["<image>"])  # as public BLIP-2 folders have it; no caption is made of it
    tokenizer.save_pretrained(foundation.blip2)
    build_model(config, 0, "meta")

    change_tokenizer(foundation.blip2, pad_token="<later pad>")
    with pytest.raises(
        ValueError, match=r"tokenizer of the LLM .*padding token '<later pad>' has id \d+, .* embeddings"
    ):
        build_model(config, 0, "meta")
    run = tmp_path / "run.yaml"
    run.write_text(yaml.safe_dump({"model": to_tree(config)}))
    assert main(["weights", "check", "--run", str(run)]) == 2
    assert "'<later pad>' has id" in capsys.readouterr().err

    other = tiny.write_foundation(tmp_path / "other")
    change_tokenizer(other.text_branch, sep_token="[later]")
    with pytest.raises(ValueError, match=r"tokenizer of the Q-Former .*sep token '\[later\]'"):
        build_model(tiny.model_config(other), 0, "meta")


@pytest.mark.parametrize(
    ("llm", "place", "token", "words"),
    [
        ("opt", (), ("image_token_index", 5000), r"image_token_index is 5000, but the LLM has \d+ token embeddings"),
        (
            "t5",
            ("text_config",),
            ("decoder_start_token_id", 99),
            r"text_config.decoder_start_token_id is 99, but the LLM",
        ),
    ],
)
def test_ids_of_the_config_without_an_embedding_are_refused(
    llm: str, place: tuple[str, ...], token: tuple[str, int], words: str, tmp_path: Path
) -> None:
    foundation = tiny.write_foundation(tmp_path, llm=llm)
    file = Path(foundation.blip2) / "config.json"
    tree = json.loads(file.read_text())
    (tree[place[0]] if place else tree).update([token])
    file.write_text(json.dumps(tree))
    with pytest.raises(ValueError, match=words):
        build_model(tiny.model_config(foundation), 0, "meta")


@pytest.mark.parametrize(
    ("llm", "special", "words"),
    [
        ("opt", {"bos_token": "<late>"}, r"its start token '<late>' has id \d+, but the LLM has"),
        ("t5", {"eos_token": "<late>"}, r"its end token '<late>' has id \d+, but the LLM has"),
        (
            "t5",
            {"eos_token": None},
            r"has no end token, so no caption could end; set eos_token in its tokenizer_config.json",
        ),
    ],
)
def test_start_and_end_tokens_without_an_embedding_are_refused(
    llm: str, special: dict[str, str | None], words: str, tmp_path: Path
) -> None:
    foundation = tiny.write_foundation(tmp_path, llm=llm)
    if None in special.values():
        settings = Path(foundation.blip2) / "tokenizer_config.json"
        settings.write_text(json.dumps(json.loads(settings.read_text()) | special))
    else:
        change_tokenizer(foundation.blip2, **special)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=words):
        build_model(tiny.model_config(foundation), 0, "meta")


def test_a_tokenizer_of_another_vocabulary_and_a_length_without_positions(tmp_path: Path) -> None:
    foundation = tiny.write_foundation(tmp_path)
    config = tiny.model_config(foundation)
    with pytest.raises(ValueError, match=r"model.max_text_tokens: 4000 is more than the \d+ positions"):
        build_model(dataclasses.replace(config, max_text_tokens=4000), 0, "meta")
    file = Path(foundation.blip2) / "tokenizer.json"
    tree = json.loads(file.read_text())
    words = tree["model"]["vocab"]
    words |= {f"word{i}": len(words) + i for i in range(5)}
    file.write_text(json.dumps(tree))
    with pytest.raises(ValueError, match=rf"its last word 'word4' has id {len(words) - 1}, but"):
        build_model(config, 0, "meta")
