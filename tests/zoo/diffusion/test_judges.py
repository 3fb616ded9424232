"""Detectors, judges and scorers around models of the zoo and of transformers."""

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch

from visattn.zoo.diffusion.judges import (
    INSTDIFF_ATTRIBUTES,
    ClipAttributes,
    ClipScore,
    LabelJudge,
    ZeroShotDetector,
    ZooDetector,
)
from visattn.zoo.diffusion.layouts import Instance
from visattn.zoo.errors import UserError
from visattn.zoo.inference import Classification, Detection

BOX = (0.0, 0.0, 1.0, 1.0)
DARK, LIGHT = (PIL.Image.new("RGB", (8, 8), (shade,) * 3) for shade in (10, 240))


class Predictor:
    """Tells light from dark pictures, as a class or as an instance."""

    names, palette = ["dark", "light"], None

    def __init__(self, kind):
        self.kind = kind

    def prepare(self, image):
        return np.asarray(image).mean()

    def predict(self, samples):
        return [int(sample > 127) for sample in samples]

    def result(self, path, size, number):
        one = np.ones(1, np.float32)
        if self.kind is Classification:
            return Classification(path, size, [self.names[number]], one, np.array([number]))
        box = np.array([[0, 0, 4, 4]], np.float32)
        return Detection(path, size, [self.names[number]], one, np.array([number]), box)


def named(label, attribute=""):
    return Instance(BOX, f"something {label}", label, attribute)


def test_a_classifier_judges_labels():
    judge = LabelJudge(Predictor(Classification))
    assert judge([DARK, LIGHT, LIGHT], [named("dark"), named("dark"), named("light")]) == [
        True,
        False,
        True,
    ]
    inverted = LabelJudge(Predictor(Classification), PIL.ImageOps.invert)
    assert inverted([DARK], [named("light")]) == [True]
    with pytest.raises(UserError, match="does not know 'grey'; it knows dark, light"):
        judge([DARK], [named("grey")])


def test_a_detector_of_the_zoo_finds_what_it_knows():
    detector = ZooDetector(Predictor(Detection))
    found = detector(LIGHT, ["light", "dark"])
    assert found.labels == ["light"] and found.boxes.tolist() == [[0, 0, 4, 4]]
    with pytest.raises(UserError, match="does not know 'grey'"):
        detector(LIGHT, ["grey"])
    with pytest.raises(UserError, match="a detector is needed; this model gives Classification"):
        ZooDetector(Predictor(Classification))(LIGHT, ["light"])


@pytest.fixture(scope="module")
def clip(tiny_diffusion, tmp_path_factory):
    """Folder of a tiny CLIP with random weights."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(tiny_diffusion() / "tokenizer")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    small["num_attention_heads"] = 4
    config = CLIPConfig(
        text_config={**small, "vocab_size": len(tokenizer), "eos_token_id": 1, "bos_token_id": 0},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    sides = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    CLIPProcessor(CLIPImageProcessor(**sides), tokenizer).save_pretrained(folder)
    return folder


def test_clip_scores_are_cosines_of_each_crop_and_its_caption(clip):
    scorer = ClipScore(clip)
    pictures, captions = [DARK, LIGHT.resize((40, 20))], ["a red cup", "a pen"]
    scores = scorer(pictures, captions)
    for picture, caption, score in zip(pictures, captions, scores, strict=True):
        inputs = scorer.processor(text=[caption], images=[picture], return_tensors="pt")
        with torch.no_grad():
            out = scorer.model(**inputs)
        cosine = torch.cosine_similarity(out.text_embeds, out.image_embeds).item()
        assert score == pytest.approx(cosine, abs=1e-5)
    assert scores[0] != scores[1] and scorer([], []) == []


def test_clip_chooses_the_attribute_that_is_most_like(clip):
    scorer, colours = ClipScore(clip), INSTDIFF_ATTRIBUTES["colour"]
    judge = ClipAttributes(scorer, colours)
    best = scorer.similarities([DARK], [f"a {colour} object" for colour in colours]).argmax()
    given = [named("x", colour) for colour in colours]
    right = judge([DARK] * len(colours), given)
    assert right == [index == best for index in range(len(colours))]
    with pytest.raises(UserError, match="has the attribute 'big', which is none of black"):
        judge([DARK], [named("x", "big")])


def test_a_zero_shot_detector_gives_labels_without_their_prefix(monkeypatch):
    import transformers

    asked = {}

    def pipeline(task, model, **options):
        def find(image, candidate_labels, threshold):
            asked.update(labels=candidate_labels, threshold=threshold)
            box = {"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}
            scores = zip(candidate_labels, (0.3, 0.6), strict=True)
            return [{"score": score, "label": label, "box": box} for label, score in scores]

        return find

    monkeypatch.setattr(transformers, "pipeline", pipeline)
    found = ZeroShotDetector("somewhere", prefix="a ")(DARK, ["cup", "pen", "cup"])
    assert asked == {"labels": ["a cup", "a pen"], "threshold": 0.25}
    assert found.labels == ["pen", "cup"] and found.classes.tolist() == [1, 0]
    assert found.scores.tolist() == pytest.approx([0.6, 0.3])
    assert found.boxes.tolist() == [[1, 2, 3, 4]] * 2


@pytest.mark.parametrize("kind", [ClipScore, ZeroShotDetector])
def test_weights_that_are_not_here_are_named(kind, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="cannot load /no/where: .*nothing is downloaded"):
        kind("/no/where")
