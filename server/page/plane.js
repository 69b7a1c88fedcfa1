// Two numbers: a plane with a point, coloured by what is answered at each place.

import { attributionTable, templates } from "./elements.js";
import { COLOURS, paintSurface } from "./pictures.js";

// Both axes.
const LOW = -0.5;
const HIGH = 1.5;
// A side of the grid: 32 x 32 are as many instances as one request may have.
const SIDE = 32;
const STEP = 0.05;
const FINE = 0.01;

const clamp = (value) => Math.min(Math.max(value, LOW), HIGH);
const share = (value) => (clamp(value) - LOW) / (HIGH - LOW);
const tidy = (value) => Math.round(value * 100) / 100;

export class Plane {
  #place = [0, 1];
  #version;

  constructor(view) {
    this.view = view;
    this.elements = templates("plane");
    const [chart, coordinates, legend] = this.elements;
    this.canvas = chart.querySelector("canvas");
    this.point = chart.querySelector(".point");
    this.legend = legend;
    this.fields = [...coordinates.querySelectorAll("input")];
    this.#listenToPointer(chart.querySelector(".surface"));
    this.#listenToKeys();
    this.fields.forEach((field, axis) => {
      field.oninput = () => {
        if (field.value === "") return;
        this.#place[axis] = field.valueAsNumber;
        this.#moved();
      };
    });
    this.#move(this.#place);
  }

  #listenToPointer(surface) {
    const drag = (event) => {
      const box = surface.getBoundingClientRect();
      const across = (event.clientX - box.left) / box.width;
      const up = (box.bottom - event.clientY) / box.height;
      this.#move([across, up].map((part) => LOW + part * (HIGH - LOW)));
    };
    surface.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      event.preventDefault();
      surface.setPointerCapture(event.pointerId);
      this.point.focus({ preventScroll: true });
      drag(event);
    });
    surface.addEventListener("pointermove", (event) => {
      if (surface.hasPointerCapture(event.pointerId)) drag(event);
    });
  }

  #listenToKeys() {
    const directions = {
      ArrowLeft: [-1, 0],
      ArrowRight: [1, 0],
      ArrowUp: [0, 1],
      ArrowDown: [0, -1],
    };
    this.point.addEventListener("keydown", (event) => {
      const direction = directions[event.key];
      if (!direction || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      const step = event.shiftKey ? FINE : STEP;
      this.#move(this.#place.map((value, axis) => value + direction[axis] * step));
    });
  }

  #move(place) {
    this.#place = place.map((value) => tidy(clamp(value)));
    this.fields.forEach((field, axis) => (field.value = this.#place[axis]));
    this.#moved();
  }

  #moved() {
    const [first, second] = this.#place;
    const { point } = this;
    point.style.left = `${100 * share(first)}%`;
    point.style.bottom = `${100 * share(second)}%`;
    point.ariaValueMin = LOW;
    point.ariaValueMax = HIGH;
    point.ariaValueNow = clamp(first);
    point.ariaValueText = `first ${first}, second ${second}`;
    this.view.ask(() => ({ instances: [this.#place] }));
  }

  answered({ version }) {
    if (version === this.#version) return;
    // The first answer, or the first of another version.
    this.#version = version;
    this.view.submit("surface", () => this.#paint());
  }

  async #paint() {
    const steps = Array.from({ length: SIDE }, (_, i) => LOW + (i / (SIDE - 1)) * (HIGH - LOW));
    const grid = steps.toReversed().flatMap((second) => steps.map((first) => [first, second]));
    const { predictions } = await this.view.predict(grid);
    const probabilities = predictions.map((prediction) => prediction.probabilities);
    paintSurface(this.canvas, probabilities, SIDE);
    const items = probabilities[0].map((_, label) => {
      const item = document.createElement("li");
      item.textContent = `answer ${label}`;
      item.style.setProperty("--colour", `rgb(${COLOURS[label % COLOURS.length]})`);
      return item;
    });
    this.legend.replaceChildren(...items);
  }

  explain({ attributions }, container) {
    container.replaceChildren(attributionTable(attributions, ["first", "second"]));
  }
}
