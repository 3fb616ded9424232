"""A canvas on which boxes are drawn with the mouse, as HTML and JavaScript for a page of Gradio's.

Boxes are dragged on the canvas; a row below it for each has its caption and a button that removes
it. After every change the text box ``#visattn-instances`` holds them as JSON, as layouts have them:
``[{"bbox": [x1, y1, x2, y2], "caption": "..."}, ...]``, in shares of the picture.
"""

__all__ = ["HTML", "RESIZE", "SCRIPT", "TEXT_BOX"]

TEXT_BOX = "visattn-instances"

HTML = """
<div id="visattn-canvas">
  <canvas width="512" height="512"
    style="width: 100%; max-width: 512px; border: 1px solid #999; cursor: crosshair;
           touch-action: none; background: #f5f5f2"></canvas>
  <div class="visattn-rows"></div>
</div>
"""

SCRIPT = """
() => {
  const root = document.querySelector("#visattn-canvas");
  if (root.dataset.ready) return;
  root.dataset.ready = "true";
  const canvas = root.querySelector("canvas"), rows = root.querySelector(".visattn-rows");
  const pen = canvas.getContext("2d");
  const boxes = [];
  let start = null, draft = null;

  const colour = (index) => `hsl(${(index * 222.5) % 360} 90% 42%)`;
  const at = (event) => {
    const area = canvas.getBoundingClientRect();
    const share = (value) => Math.min(1, Math.max(0, value));
    return [
      share((event.clientX - area.left) / area.width),
      share((event.clientY - area.top) / area.height),
    ];
  };
  const between = ([ax, ay], [bx, by]) =>
    [Math.min(ax, bx), Math.min(ay, by), Math.max(ax, bx), Math.max(ay, by)];

  const paint = () => {
    const { width, height } = canvas;
    pen.clearRect(0, 0, width, height);
    pen.lineWidth = 3;
    pen.font = "16px sans-serif";
    [...boxes, ...(draft ? [{ bbox: draft, caption: "" }] : [])].forEach((box, index) => {
      const [x1, y1, x2, y2] = box.bbox;
      pen.strokeStyle = pen.fillStyle = colour(index);
      pen.strokeRect(x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height);
      pen.fillText(box.caption, x1 * width + 5, y1 * height + 18, (x2 - x1) * width - 8);
    });
  };
  const sync = () => {
    const text = document.querySelector("#visattn-instances textarea");
    const rounded = (value) => Math.round(value * 1e4) / 1e4;
    text.value = JSON.stringify(
      boxes.map(({ bbox, caption }) => ({ bbox: bbox.map(rounded), caption })));
    text.dispatchEvent(new Event("input", { bubbles: true }));
    paint();
  };
  const list = () => {
    rows.replaceChildren(...boxes.map((box, index) => {
      const row = document.createElement("div");
      row.style.cssText = "display: flex; gap: 6px; margin-top: 6px; align-items: center";
      const caption = document.createElement("input");
      caption.placeholder = "what is in this box";
      caption.value = box.caption;
      caption.style.cssText =
        `flex: 1; padding: 4px; border: 2px solid ${colour(index)}; color: #111; background: #fff`;
      caption.oninput = () => { box.caption = caption.value; sync(); };
      const remove = document.createElement("button");
      remove.type = "button";
      remove.textContent = "\\u00d7";
      remove.title = "remove this box";
      remove.onclick = () => { boxes.splice(index, 1); list(); sync(); };
      row.append(caption, remove);
      return row;
    }));
  };

  canvas.onpointerdown = (event) => {
    canvas.setPointerCapture(event.pointerId);
    start = at(event);
  };
  canvas.onpointermove = (event) => {
    if (!start) return;
    draft = between(start, at(event));
    paint();
  };
  canvas.onpointerup = (event) => {
    if (!start) return;
    const bbox = between(start, at(event));
    start = draft = null;
    if (bbox[2] - bbox[0] > 0.01 && bbox[3] - bbox[1] > 0.01) {
      boxes.push({ bbox, caption: "" });
      list();
      rows.lastElementChild.querySelector("input").focus();
    }
    sync();
  };
  canvas.onpointercancel = () => { start = draft = null; paint(); };
  window.visattnResize = (width, height) => {
    const scale = 512 / Math.max(width, height);
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.maxWidth = `${canvas.width}px`;
    paint();
  };
}
"""
"""A function to be run when the page has loaded."""

RESIZE = "(width, height) => { window.visattnResize(width, height); return []; }"
"""A function of a picture's width and height, which gives the canvas its shape."""
