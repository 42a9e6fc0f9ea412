"""The toy world: the same scene for the same key, sentences that are true, and a truth check that finds lies."""

from __future__ import annotations

import numpy as np
import pytest

from rb.toy.pretraining.data import crop_view, fact_list
from rb.toy.pretraining.tokenizers import opt_tokenizer, qformer_tokenizer
from rb.toy.world.scenes import cloud_captions, make_cloud, make_scene, region_expressions, whole_captions
from rb.toy.world.truth import parse_caption, scene_truth, singles_out, true_counted, true_whole

SCENES = [make_scene(3, "test", i) for i in range(120)]
CLOUDS = [make_cloud(3, "test", i) for i in range(60)]


def test_a_scene_is_a_pure_function_of_its_key():
    again = make_scene(3, "test", 7)
    assert np.array_equal(again.image, SCENES[7].image)
    assert again.objects == SCENES[7].objects
    assert whole_captions(again) == whole_captions(SCENES[7])
    for other in (make_scene(4, "test", 7), make_scene(3, "train", 7), make_scene(3, "test", 8)):
        assert not np.array_equal(other.image, again.image)
    assert np.array_equal(make_cloud(3, "test", 5).points, CLOUDS[5].points)


def test_scenes_are_as_described():
    for scene in SCENES:
        assert scene.image.shape == (64, 64, 3)
        assert scene.image.dtype == np.uint8
        assert 3 <= len(scene.objects) <= 6
        assert len({o.colour for o in scene.objects}) <= 3
        for i, a in enumerate(scene.objects):
            assert 0 <= a.box[0] < a.box[2] <= 64
            assert 0 <= a.box[1] < a.box[3] <= 64
            for b in scene.objects[i + 1 :]:
                assert a.box[2] < b.box[0] or b.box[2] < a.box[0] or a.box[3] < b.box[1] or b.box[3] < a.box[1]


def test_boxes_lie_where_the_objects_are_painted():
    inside, outside = [], []
    for scene in SCENES[:40]:
        image = scene.image.astype(float)
        chroma = image.max(-1) - image.min(-1)  # the ground is grey
        mask = np.zeros((64, 64), dtype=bool)
        for item in scene.objects:
            x0, y0, x1, y1 = (round(v) for v in item.box)
            mask[y0:y1, x0:x1] = True
            inside.append(chroma[y0 + 3 : y1 - 2, x0 + 3 : x1 - 2].mean())
        grown = mask.copy()
        for dy, dx in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            grown |= np.roll(mask, (dy, dx), (0, 1))
        outside.append(chroma[~grown].mean())
    assert min(inside) > 2 * max(outside)


def test_clouds_are_whole_and_in_raw_units():
    radii = []
    for cloud in CLOUDS:
        assert cloud.points.shape == (1024, 3)
        assert 2 <= len(cloud.objects) <= 4
        assert {o.size for o in cloud.objects} == {"small", "big"}
        low = np.min([o.box[:3] for o in cloud.objects], axis=0)
        high = np.max([o.box[3:] for o in cloud.objects], axis=0)
        room = 0.05 * (high - low).max()
        assert (cloud.points >= low - room).all()
        assert (cloud.points <= high + room).all()
        for item in cloud.objects:
            inside = (cloud.points >= item.box[:3]).all(1) & (cloud.points <= item.box[3:]).all(1)
            assert inside.sum() >= 50
        radii.append(np.linalg.norm(cloud.points - cloud.points.mean(0), axis=1).max())
    assert max(radii) / min(radii) > 10  # so a reader that forgets to normalise is found out


def test_every_sentence_is_true_and_every_expression_singles_its_object_out():
    for scene in SCENES:
        truth = scene_truth(scene)
        assert all(true_counted(caption, truth) for caption in whole_captions(scene))
        for item in scene.objects:
            for expression in region_expressions(scene, item):
                assert singles_out(expression, truth, item.object_id), (expression, scene.scene_id)
                for other in scene.objects:
                    assert other is item or not singles_out(expression, truth, other.object_id), expression
    for cloud in CLOUDS:
        assert all(true_counted(caption, scene_truth(cloud)) for caption in cloud_captions(cloud))


def test_many_regions_need_a_position_or_a_size():
    regions = [(scene, item) for scene in SCENES for item in scene.objects]
    hard = [
        (scene, item)
        for scene, item in regions
        if sum((o.shape, o.colour) == (item.shape, item.colour) for o in scene.objects) > 1
    ]
    assert len(hard) / len(regions) >= 0.4
    without = sum(not region_expressions(scene, item) for scene, item in regions)
    assert without / len(regions) < 0.05
    # Of the others three in four carry a position word that they do not need, where the object has a side.
    easy = [e for scene, item in regions if (scene, item) not in hard for e in region_expressions(scene, item)]
    wordy = sum(len(expression.split()) == 3 for expression in easy) / len(easy)
    assert 0.6 < wordy < 0.8


def test_the_truth_check_finds_lies():
    def item(k: int, shape: str, colour: str, size: str, x: float, y: float) -> dict[str, object]:
        return {
            "object_id": f"o{k}",
            "shape": shape,
            "colour": colour,
            "size": size,
            "box": [x - 5, y - 5, x + 5, y + 5],
        }

    objects = [
        item(0, "cube", "red", "small", 10, 30),
        item(1, "cube", "red", "small", 40, 33),
        item(2, "ball", "blue", "big", 55, 10),
    ]
    truth = {"width": 64, "height": 64, "objects": objects}
    assert true_whole("a red cube, a red cube and a big blue ball.", truth)
    assert true_counted("a red cube, a red cube and a big blue ball.", truth)
    assert true_whole("a red cube, a red cube and a red cube", truth)
    assert not true_counted("a red cube, a red cube and a red cube", truth)  # there are two
    assert not true_whole("a red cube and a blue cube", truth)
    assert not true_whole("a small blue ball", truth)
    assert not true_whole("a red cube and a shiny thing", truth)
    assert not true_whole("", truth)
    assert singles_out("left red cube", truth, "o0")
    assert not singles_out("left red cube", truth, "o1")
    assert not singles_out("red cube", truth, "o0")
    assert not singles_out("top red cube", truth, "o0")  # 3 pixels are no margin
    assert singles_out("ball", truth, "o2")
    assert singles_out("top right blue ball", truth, "o2")
    assert not singles_out("left blue ball", truth, "o2")
    assert not singles_out("left red cube and a blue ball", truth, "o0")
    assert not singles_out("left left red cube", truth, "o0")
    with pytest.raises(ValueError, match="no object 'o9'"):
        singles_out("red cube", truth, "o9")


def test_both_tokenizers_cover_the_language():
    opt, bert = opt_tokenizer(), qformer_tokenizer()
    assert (opt.pad_token_id, opt.bos_token_id, opt.eos_token_id) == (1, 2, 2)
    assert bert.bos_token == "[DEC]"
    assert bert.bos_token_id == len(bert) - 1
    texts = ["a photo of", "question: what color is the ball? short answer:"]
    for scene in SCENES[:40]:
        texts += [*whole_captions(scene), fact_list(scene), *crop_view(scene, 0).captions]
        texts += [e for item in scene.objects for e in region_expressions(scene, item)]
    texts += [caption for cloud in CLOUDS for caption in cloud_captions(cloud)]
    for text in texts:
        assert opt.unk_token_id not in opt(text)["input_ids"], text
        assert bert.unk_token_id not in bert(text)["input_ids"], text
    caption = whole_captions(SCENES[0])[0]
    assert opt.decode(opt(caption)["input_ids"], skip_special_tokens=True).strip() == caption
    assert len(opt("\n", add_special_tokens=False)["input_ids"]) == 1
    assert opt("a ball")["input_ids"][0] == opt.bos_token_id


def test_captions_of_crops_say_what_is_seen():
    for scene in SCENES[:40]:
        view = crop_view(scene, 1)
        assert view.image.shape == (64, 64, 3)
        assert view.seen
        for caption in view.captions:
            phrases = parse_caption(caption)
            assert phrases is not None
            assert all(p.size is None for p in phrases)  # a crop has no scale
            assert true_counted(caption, scene_truth(scene))
