// Any other shape: one instance, written as JSON.

import { attributionTable, templates } from "./elements.js";

const MOST_SHOWN = 32;

export class Numbers {
  constructor(view) {
    this.view = view;
    this.elements = templates("numbers");
    this.field = this.elements[0].querySelector("textarea");
    const zeros = ([length, ...inner]) =>
      length === undefined ? 0 : Array.from({ length }, () => zeros(inner));
    this.field.value = JSON.stringify(zeros(view.shape));
    this.field.oninput = () => this.#changed();
    this.#changed();
  }

  #changed() {
    let instance;
    try {
      instance = JSON.parse(this.field.value);
    } catch (error) {
      this.view.refuse(`This is not JSON: ${error.message}`);
      return;
    }
    this.view.ask(() => ({ instances: [instance] }));
  }

  explain({ attributions }, container) {
    const flat = attributions.flat(Infinity).slice(0, MOST_SHOWN);
    container.replaceChildren(attributionTable(flat, [...flat.keys()]));
  }
}
