// Draw, or bring a picture.

import { templates } from "./elements.js";
import { paintAttributions, paintGray, strongestPlace } from "./pictures.js";
import { SAMPLES } from "./samples.js";

// Strokes are kept in a square of 100, whatever the size of the pad.
const SIDE = 100;
const PEN = 7.5;
// Of what is sent of a drawing: ten times what the model sees, and a few kilobytes.
const SENT = 280;
// The service takes no larger pictures; what is over is scaled down to a side of REDUCED.
const MAX_BYTES = 1 << 20;
const MAX_SIDE = 4096;
const REDUCED = 1024;

export class Pad {
  // What is in the pad: strokes, or a picture with what is sent of it.
  #strokes = [];
  #picture;
  #file;
  #pointer;
  #last;

  constructor(view) {
    this.view = view;
    this.elements = templates("pad");
    const [surface, tools, samples] = this.elements;
    this.surface = surface;
    this.canvas = surface.querySelector("canvas");
    this.#listenToPointer();
    this.#listenToKeys();
    this.#listenToFiles(tools);
    tools.querySelector(".clear").onclick = () => this.clear();
    tools.querySelector(".undo").onclick = () => this.undo();
    SAMPLES.forEach((_, digit) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = digit;
      button.onclick = () => this.#drawSample(digit);
      samples.append(button);
    });
    new ResizeObserver(() => this.#render()).observe(this.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#render());
  }

  clear() {
    this.#strokes = [];
    this.#picture = this.#file = undefined;
    this.#render();
    this.view.clear();
  }

  undo() {
    this.#strokes.pop();
    if (this.#strokes.length) this.#changed();
    else this.clear();
  }

  // --- Drawing.

  #listenToPointer() {
    const { canvas } = this;
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      return [
        ((event.clientX - box.left) / box.width) * SIDE,
        ((event.clientY - box.top) / box.height) * SIDE,
      ];
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || this.#pointer !== undefined) return;
      this.#pointer = event.pointerId;
      canvas.setPointerCapture(event.pointerId);
      this.#last = place(event);
      const stroke = new Path2D();
      stroke.moveTo(...this.#last);
      // A tap is a dot; of no length, nothing would be drawn.
      stroke.lineTo(this.#last[0] + 0.01, this.#last[1]);
      this.#begin(stroke);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (event.pointerId !== this.#pointer) return;
      const stroke = this.#strokes.at(-1);
      // Some browsers give none to events that scripts made.
      const events = event.getCoalescedEvents?.() ?? [];
      for (const [x, y] of (events.length ? events : [event]).map(place)) {
        // Through the middle between two places, so that the line has no corners.
        const [lastX, lastY] = this.#last;
        stroke.quadraticCurveTo(lastX, lastY, (lastX + x) / 2, (lastY + y) / 2);
        this.#last = [x, y];
      }
      this.#changed();
    });
    for (const kind of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(kind, (event) => {
        if (event.pointerId !== this.#pointer) return;
        this.#pointer = undefined;
        this.#strokes.at(-1)?.lineTo(...this.#last);
        if (this.#strokes.length) this.#changed();
      });
    }
  }

  #listenToKeys() {
    this.canvas.addEventListener("keydown", (event) => {
      const { key } = event;
      if ((event.ctrlKey || event.metaKey) && key.toLowerCase() === "z") this.undo();
      else if (event.ctrlKey || event.metaKey || event.altKey) return;
      else if (/^[0-9]$/.test(key)) this.#drawSample(Number(key));
      else if (["Delete", "Backspace", "Escape"].includes(key)) this.clear();
      else return;
      event.preventDefault();
    });
  }

  #drawSample(digit) {
    this.#strokes = [];
    this.#begin(new Path2D(SAMPLES[digit]));
  }

  #begin(stroke) {
    this.#picture = this.#file = undefined;
    this.#strokes.push(stroke);
    this.#changed();
  }

  #changed() {
    this.#render();
    this.view.ask(() => this.#file ?? this.#drawing());
  }

  /** The drawing as a PNG file, black on white whatever the colours of the page. */
  #drawing() {
    const canvas = new OffscreenCanvas(SENT, SENT);
    const context = canvas.getContext("2d");
    context.fillStyle = "#fff";
    context.fillRect(0, 0, SENT, SENT);
    this.#trace(context, SENT, "#000");
    return canvas.convertToBlob({ type: "image/png" });
  }

  #trace(context, side, colour) {
    context.scale(side / SIDE, side / SIDE);
    context.strokeStyle = colour;
    context.lineWidth = PEN;
    context.lineCap = context.lineJoin = "round";
    this.#strokes.forEach((stroke) => context.stroke(stroke));
  }

  #render() {
    const { canvas } = this;
    const side = Math.round(canvas.clientWidth * devicePixelRatio);
    if (!side) return;
    canvas.width = canvas.height = side;
    const context = canvas.getContext("2d");
    if (this.#picture) {
      const { width, height } = this.#picture;
      const scale = side / Math.max(width, height);
      const [w, h] = [width * scale, height * scale];
      context.imageSmoothingEnabled = scale < 4;
      context.drawImage(this.#picture, (side - w) / 2, (side - h) / 2, w, h);
    }
    this.#trace(context, side, getComputedStyle(canvas).color);
    const strokes = this.#strokes.length;
    this.surface.classList.toggle("blank", !strokes && !this.#picture);
    const contents = strokes === 1 ? "1 stroke" : `${strokes} strokes`;
    canvas.ariaLabel = this.#picture ? "Pad with a picture" : `Pad with ${contents}`;
  }

  // --- Pictures.

  #listenToFiles(tools) {
    for (const [button, input] of [
      [".choose", ".files"],
      [".photograph", ".camera"],
    ]) {
      const chooser = tools.querySelector(input);
      tools.querySelector(button).onclick = () => chooser.click();
      chooser.onchange = () => {
        this.#take(chooser.files[0]);
        // The same file may be chosen again.
        chooser.value = "";
      };
    }
    const isShown = () => this.canvas.checkVisibility();
    document.addEventListener("paste", (event) => {
      if (isShown() && event.clipboardData.files.length) this.#take(event.clipboardData.files[0]);
    });
    // Anywhere: a picture that misses the pad by a little is not to replace the page.
    for (const kind of ["dragover", "dragleave", "drop"]) {
      document.addEventListener(kind, (event) => {
        if (!isShown()) return;
        if (kind !== "dragleave") event.preventDefault();
        this.surface.classList.toggle("target", kind === "dragover");
        if (kind === "drop") this.#take(event.dataTransfer.files[0]);
      });
    }
  }

  async #take(file) {
    if (!file) return;
    let picture;
    try {
      picture = await createImageBitmap(file);
    } catch {
      // The service says what it takes, unless the file is too large to be sent at all.
    }
    this.clear();
    if (!picture && file.size > MAX_BYTES) {
      this.view.refuse("This file is not a picture that this browser can read.");
      return;
    }
    const fits =
      file.size <= MAX_BYTES && (!picture || Math.max(picture.width, picture.height) <= MAX_SIDE);
    this.#picture = picture;
    this.#file = fits ? file : await reduce(picture);
    this.#changed();
  }

  // --- What came back.

  explain({ label, input, attributions }, container) {
    if (!container.firstChild) container.append(...templates("pictures"));
    const [seen, spoke] = container.querySelectorAll("canvas");
    paintGray(seen, input);
    paintAttributions(spoke, input, attributions);
    container.querySelector(".label").textContent = label;
    const place = strongestPlace(attributions);
    spoke.ariaLabel = `The ${place} of the picture spoke most for ${label}`;
  }
}

/** A picture that is too large, as a smaller JPEG file. */
function reduce(picture) {
  const scale = REDUCED / Math.max(picture.width, picture.height);
  const [width, height] = [picture.width, picture.height].map((side) =>
    Math.max(1, Math.round(side * scale)),
  );
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, width, height);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.9 });
}
