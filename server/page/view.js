// One model: its input on the left, what it answers on the right.

import { call, Refusal } from "./service.js";
import { percent, template } from "./elements.js";
import { Numbers } from "./numbers.js";
import { Pad } from "./pad.js";
import { Plane } from "./plane.js";

// Between two predictions while somebody draws: the service has other users.
const PACE_MS = 80;
// An answer to what the input no longer holds is not shown for longer than this.
const OVERDUE_MS = 1000;
// An answer that no other has followed for this long is announced to screen readers.
const SETTLED_MS = 500;
const announcement = document.getElementById("announcement");
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** The input that fits the shape of an instance. */
function inputFor(shape) {
  if (shape.length === 2 && shape[0] === 28 && shape[1] === 28) return Pad;
  if (shape.length === 1 && shape[0] === 2) return Plane;
  return Numbers;
}

/** A body and its type; a file is read now, as it may have gone when it is asked for again. */
async function encode(body) {
  if (body instanceof Blob) return [await body.arrayBuffer(), body.type];
  return [JSON.stringify(body), "application/json"];
}

export class View {
  #bars = [];
  #explains = true;
  // Serial numbers: of the last thing asked, and of the last one whose answer nobody wants.
  #asked = 0;
  #dropped = 0;
  #sent = -Infinity;
  #settled;
  #overdue;
  #exchange;

  /**
   * @param model its metadata in the form of the Open Inference Protocol
   * @param queue through which everything is asked
   * @param missing called where the service no longer has this model
   */
  constructor(model, queue, missing) {
    this.name = model.name;
    this.shape = (model.inputs?.[0]?.shape ?? []).slice(1);
    this.queue = queue;
    this.missing = missing;
    this.element = template("view");
    this.$ = (selector) => this.element.querySelector(selector);
    this.$("h2").textContent = this.$(".model").textContent = model.name;
    this.$("details").addEventListener("toggle", () => this.#showExchange());
    const outputs = model.outputs ?? [];
    const labels = outputs.find(({ name }) => name === "probabilities")?.shape.at(-1) ?? 0;
    this.#makeBars(Math.max(labels, 0));
    this.input = new (inputFor(this.shape))(this);
    this.$(".input").append(...this.input.elements);
  }

  get path() {
    return `/predictions/${encodeURIComponent(this.name)}`;
  }

  /** Ask through the queue, in the place of what this view has not yet asked of the same kind. */
  submit(kind, task) {
    this.queue.submit(`${kind} ${this.name}`, task);
  }

  withdraw(kind) {
    this.queue.withdraw(`${kind} ${this.name}`);
  }

  /**
   * Ask for an answer to what the input holds when its turn comes.
   *
   * @param read gives the body: a `Blob`, or an object that is sent as JSON
   */
  ask(read) {
    const asked = ++this.#asked;
    if (this.element.classList.contains("refused")) this.#blank();
    this.#expectAnswer();
    this.withdraw("explanation");
    this.submit("answer", async () => {
      await pause(this.#sent + PACE_MS - performance.now());
      if (asked <= this.#dropped) return;
      this.#sent = performance.now();
      const [content, type] = await encode(await read());
      let answer;
      try {
        answer = await call(this.path, content, type);
      } catch (error) {
        if (!(error instanceof Refusal)) throw error;
        if (asked > this.#dropped) this.refuse(error.message);
        if (error.status === 404) this.missing();
        return;
      }
      if (asked <= this.#dropped) return;
      if (!answer.document?.predictions?.[0]?.probabilities) {
        this.refuse("This model answers in a form that this page does not know.");
        return;
      }
      this.#show(answer, content, type);
      if (asked !== this.#asked) this.#expectAnswer();
      else if (this.#explains) this.#explain(content, type, asked);
    });
  }

  #explain(content, type, asked) {
    this.submit("explanation", async () => {
      let answer;
      try {
        answer = await call(this.path.replace("predictions", "explanations"), content, type);
      } catch (error) {
        if (!(error instanceof Refusal)) throw error;
        this.#explains = ![404, 405, 501].includes(error.status);
      }
      const explanation = answer?.document?.explanations?.[0];
      // A model need not explain itself.
      if (answer && !explanation) this.#explains = false;
      if (asked !== this.#asked || asked <= this.#dropped) return;
      this.$(".explanation").hidden = !explanation;
      if (!explanation) return;
      this.input.explain(explanation, this.$(".explanation"));
      this.$(".explanation").classList.remove("stale");
      this.$(".explained").textContent = `${answer.ms.toFixed(1)} ms`;
    });
  }

  /** The answer to many instances at once, in one request. */
  async predict(instances) {
    return (await call(this.path, ...(await encode({ instances })))).document;
  }

  /** Say why there is no answer. */
  refuse(message) {
    this.clear();
    this.element.classList.add("refused");
    this.$(".verdict span").textContent = announcement.textContent = message;
  }

  /** Nothing is asked, and nothing is answered. */
  clear() {
    this.#dropped = this.#asked;
    this.withdraw("answer");
    this.withdraw("explanation");
    this.#blank();
  }

  #blank() {
    this.#stopTimers();
    announcement.textContent = "";
    this.element.classList.remove("answered", "refused");
    this.$(".verdict span").textContent = "No answer yet";
    this.$(".time").textContent = this.$(".explained").textContent = "–";
    this.$(".explanation").hidden = true;
    this.#bars.forEach((show) => show(0));
    this.#exchange = undefined;
    this.#showExchange();
  }

  #expectAnswer() {
    this.#overdue ??= setTimeout(() => this.#blank(), OVERDUE_MS);
  }

  #stopTimers() {
    clearTimeout(this.#settled);
    clearTimeout(this.#overdue);
    this.#overdue = undefined;
  }

  #show(answer, content, type) {
    const { version, predictions } = answer.document;
    const { label, confidence, probabilities } = predictions[0];
    this.element.classList.remove("refused");
    this.element.classList.add("answered");
    this.$(".explanation").classList.add("stale");
    this.$(".result").textContent = label;
    this.$(".verdict span").textContent = percent(confidence);
    this.$(".version").textContent = version;
    this.$(".time").textContent = `${answer.ms.toFixed(1)} ms`;
    if (this.#bars.length !== probabilities.length) this.#makeBars(probabilities.length);
    this.#bars.forEach((show, i) => show(probabilities[i], i === label));
    this.#exchange = { ...answer, content, type };
    this.#showExchange();
    this.input.answered?.(answer.document);
    this.#stopTimers();
    this.#settled = setTimeout(() => {
      const probability = percent(confidence);
      announcement.textContent = `${this.name} answers ${label}, probability ${probability}`;
    }, SETTLED_MS);
  }

  #makeBars(count) {
    const rows = Array.from({ length: count }, (_, label) => {
      const row = template("bar");
      row.querySelector("th").textContent = label;
      return row;
    });
    this.$("tbody").replaceChildren(...rows);
    this.#bars = rows.map((row) => (share, isAnswer) => {
      row.querySelector("i").style.setProperty("--share", share);
      row.querySelector("span").textContent = percent(share);
      row.classList.toggle("best", Boolean(isAnswer));
    });
    this.#bars.forEach((show) => show(0));
  }

  #showExchange() {
    if (!this.$("details").open) return;
    const { document, content, type, id } = this.#exchange ?? {};
    const url = location.origin + this.path;
    let request = "No answer yet.";
    if (content instanceof ArrayBuffer) {
      request = `# ${content.byteLength} bytes, X-Request-Id ${id}\ncurl -T picture.${type.split("/")[1] ?? "file"} ${url}`;
    } else if (content) {
      request = `# X-Request-Id ${id}\ncurl --json '${content}' ${url}`;
    }
    this.$(".request").textContent = request;
    // Lists of numbers on a line each.
    const text = document ? JSON.stringify(document, null, 2) : "";
    this.$(".body").textContent = text.replace(/\[[^[\]{}]*\]/g, (list) =>
      list.replace(/\s+/g, " "),
    );
  }
}
