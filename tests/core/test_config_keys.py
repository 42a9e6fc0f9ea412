"""Every key of a run file says what it means, in all sections; and the guard that says so can fail."""

from __future__ import annotations

from dataclasses import dataclass, field

from rb.core.config_keys import all_keys, config_classes, fields_without_sentence
from rb.core.model_config import FoundationConfig


@dataclass(frozen=True)
class Inner:
    explained: int = 1
    """A sentence."""
    silent: int = 2


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    """A section."""
    rows: dict[str, tuple[Inner, ...]] = field(default_factory=dict)
    """Rows."""
    last: int = 0


def test_every_field_says_what_it_means() -> None:
    classes = config_classes()
    names = {cls.__name__ for cls in classes}
    assert {"RunConfig", "DataSource", "ModelConfig", "LoraConfig", "InitConfig", "FoundationConfig"} <= names
    missing = [f"{cls.__name__}.{name}" for cls in classes for name in fields_without_sentence(cls)]
    assert not missing, f"fields without a sentence under them: {', '.join(missing)}"


def test_the_guard_sees_a_missing_sentence_in_every_section() -> None:
    assert config_classes(Outer) == [Outer, Inner]
    assert fields_without_sentence(Outer) == ["last"]
    assert fields_without_sentence(Inner) == ["silent"]


def test_keys_have_their_dotted_names_defaults_and_sentences() -> None:
    assert [key.name for key in all_keys(Outer)] == [
        *("inner.explained", "inner.silent", "rows", "rows.*[].explained", "rows.*[].silent", "last")
    ]
    keys = {key.name: key for key in all_keys()}
    assert keys["optim.lr"].default == 1e-4
    assert keys["data.train.*[].repeat"].default == 1
    assert keys["model.foundation.blip2"].sentence.startswith("A Hugging Face BLIP-2 folder")
    assert keys["model.foundation.blip2"].default == FoundationConfig().blip2
    assert not [key.name for key in keys.values() if not key.sentence]
