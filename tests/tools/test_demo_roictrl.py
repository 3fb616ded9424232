"""The page on which boxes are drawn: what it makes of them, alone and in a real browser."""

import json
import re
import shutil
from contextlib import contextmanager

import pytest

from visattn.tools import demo_roictrl
from visattn.zoo.diffusion.generation import load_pipeline
from visattn.zoo.errors import DataError

BOXES = [{"bbox": [0.1, 0.2, 0.5, 0.9], "caption": "a red cup"}]


@pytest.fixture
def page(tiny_diffusion):
    """Serves the page of a tiny model; gives its address."""
    pytest.importorskip("gradio")
    pipeline = load_pipeline("masked", tiny_diffusion())
    blocks = demo_roictrl.make_page(pipeline, "masked", steps=2)
    _, address, _ = blocks.queue().launch(prevent_thread_lock=True, quiet=True, server_port=None)
    yield address
    blocks.close()


@contextmanager
def browser():
    """A tab of a headless Chromium, if there is one."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        tab = chromium.new_page(viewport={"width": 1280, "height": 1600})
        tab.set_default_timeout(120_000)
        yield tab
        chromium.close()


def test_a_page_becomes_a_record():
    record = demo_roictrl.to_record("a desk", json.dumps(BOXES), "dark", 64.0, 128)
    assert record == {
        "prompt": "a desk",
        "instances": BOXES,
        "negative_prompt": "dark",
        "width": 64,
        "height": 128,
    }
    assert demo_roictrl.to_record("a desk", "", "", 64, 64)["instances"] == []
    with pytest.raises(DataError, match="the boxes are no JSON"):
        demo_roictrl.to_record("a desk", "[", "", 64, 64)


def test_without_gradio_it_is_said_what_to_install(monkeypatch, capsys, tiny_diffusion):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    code = demo_roictrl.main(["--model", str(tiny_diffusion()), "--device", "cpu"])
    assert code == 2 and 'pip install "visattn[demo]"' in capsys.readouterr().err


def test_boxes_are_filled_for_clients(page):
    import PIL.Image
    from gradio_client import Client

    client = Client(page, verbose=False)
    given = ["a desk", json.dumps(BOXES), "", 64, 64, 0, 2, 5.0, 0]
    image, boxed = (PIL.Image.open(path) for path in client.predict(*given, api_name="/fill"))
    assert image.size == (64, 64) and image.tobytes() != boxed.tobytes()
    with pytest.raises(Exception, match="the page lacks 'prompt'|prompt is empty"):
        client.predict(" ", *given[1:], api_name="/fill")


def test_boxes_are_drawn_with_the_mouse(page):
    with browser() as tab:
        errors = []
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(page)
        tab.wait_for_selector("#visattn-canvas[data-ready]")
        area = tab.locator("#visattn-canvas canvas").bounding_box()

        def drag(*corners):
            for move, (x, y) in zip(("down", "up"), corners, strict=True):
                tab.mouse.move(area["x"] + x * area["width"], area["y"] + y * area["height"])
                getattr(tab.mouse, move)()

        def boxes():
            return json.loads(tab.locator("#visattn-instances textarea").input_value())

        drag((0.5, 0.9), (0.1, 0.2))  # from below on the right: corners are sorted
        tab.keyboard.type("a red cup")
        drag((0.6, 0.1), (0.9, 0.4))
        tab.keyboard.type("a pen")
        drag((0.2, 0.2), (0.2, 0.2))  # a click is no box
        assert [box["caption"] for box in boxes()] == ["a red cup", "a pen"]
        assert boxes()[0]["bbox"] == pytest.approx([0.1, 0.2, 0.5, 0.9], abs=0.01)
        tab.locator(".visattn-rows button").nth(1).click()
        assert [box["caption"] for box in boxes()] == ["a red cup"]
        tab.locator("#visattn-width input").fill("128")
        tab.locator("#visattn-width input").blur()
        tab.wait_for_function("document.querySelector('#visattn-canvas canvas').height === 256")
        tab.locator("#visattn-prompt textarea").fill("a desk")
        tab.locator("#visattn-fill").click()
        picture = tab.locator("#visattn-picture img")
        picture.wait_for()
        assert re.match("https?://", picture.get_attribute("src"))
        assert picture.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [128, 64]
        assert errors == []
