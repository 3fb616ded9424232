"""A page on which boxes are drawn with the mouse and captioned, and a model fills them.

python tools/demo_roictrl.py --model MODEL --roictrl FILE
python tools/demo_roictrl.py --model MODEL --method masked --device cpu --steps 20 --port 7861
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from visattn.tools._cli import run
from visattn.tools.generate import add_model_arguments, load


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument("--steps", type=int, default=30, help="at first (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s, this machine")
    parser.add_argument("--port", type=int, default=7860, help="default: %(default)s")
    return parser.parse_args(argv)


def to_record(prompt: str, instances: str, negative: str, width: float, height: float) -> dict:
    """What is on the page, as a record of layouts.

    Raises:
        DataError: If the text of instances is no JSON.
    """
    from visattn.zoo.errors import DataError

    try:
        given = json.loads(instances or "[]")
    except json.JSONDecodeError as error:
        raise DataError(f"the boxes are no JSON: {error}") from error
    return {
        "prompt": prompt,
        "instances": given,
        "negative_prompt": negative,
        "width": int(width),
        "height": int(height),
    }


def make_page(pipeline: Any, method: str, steps: int = 30) -> Any:
    """The page, a ``gradio.Blocks`` to be launched.

    Args:
        pipeline: Of ``visattn.zoo.diffusion.generation.load_pipeline``.
        method: Its method.
        steps: Steps at first.

    Raises:
        UserError: If Gradio is not installed.
    """
    from visattn.zoo.diffusion import canvas, generation
    from visattn.zoo.diffusion.drawing import draw_boxes
    from visattn.zoo.diffusion.layouts import to_layout
    from visattn.zoo.errors import UserError

    try:
        import gradio as gr
    except ImportError as error:
        raise UserError('the page needs Gradio: pip install "visattn[demo]"') from error

    def fill(prompt, instances, negative, width, height, seed, steps, guidance, ratio):
        settings = generation.Settings(int(steps), guidance, agent_sd=ratio or None)
        try:
            record = to_record(prompt, instances, negative, width, height)
            layout = to_layout(record, "the page", "page")
            (image,) = generation.draw(pipeline, method, [layout], [int(seed)], settings)
        except UserError as error:
            raise gr.Error(str(error)) from error
        return image, draw_boxes(image, layout)

    size = generation.native_size(pipeline)
    with gr.Blocks(title="Instances") as page:
        gr.Markdown(f"Draw boxes with the mouse, say what is in each, and fill them ({method}).")
        with gr.Row():
            with gr.Column():
                prompt = gr.Textbox(label="Prompt", elem_id="visattn-prompt")
                gr.HTML(canvas.HTML)
                instances = gr.Textbox("[]", label="Boxes", lines=2, elem_id=canvas.TEXT_BOX)
                negative = gr.Textbox(label="Negative prompt")
                with gr.Row():
                    width = gr.Number(size[0], label="Width", precision=0, elem_id="visattn-width")
                    height = gr.Number(
                        size[1], label="Height", precision=0, elem_id="visattn-height"
                    )
                    seed = gr.Number(0, label="Seed", precision=0)
                with gr.Row():
                    count = gr.Slider(1, 100, steps, step=1, label="Steps")
                    guidance = gr.Slider(1, 15, 7.5, step=0.5, label="Guidance")
                    ratio = gr.Slider(0, 0.5, 0, step=0.1, label="AgentSD, share of tokens merged")
            with gr.Column():
                button = gr.Button("Fill the boxes", variant="primary", elem_id="visattn-fill")
                image = gr.Image(label="Picture", format="png", elem_id="visattn-picture")
                boxed = gr.Image(label="With the boxes", format="png")
        given = [prompt, instances, negative, width, height, seed, count, guidance, ratio]
        button.click(fill, given, [image, boxed], api_name="fill")
        page.load(None, None, None, js=canvas.SCRIPT)
        for field in (width, height):
            field.change(None, [width, height], None, js=canvas.RESIZE)
    return page


def demo(argv: Sequence[str] | None = None) -> None:
    """Runs the command until it is interrupted; raises what goes wrong."""
    args = parse_args(argv)
    pipeline, method = load(args)
    page = make_page(pipeline, method, args.steps)
    page.queue().launch(server_name=args.host, server_port=args.port)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run(demo, argv)


if __name__ == "__main__":
    sys.exit(main())
