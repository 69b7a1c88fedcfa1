// Which models there are, which one is shown, and what stands in the way.

import { call, Queue, Refusal } from "./service.js";
import { View } from "./view.js";

const trouble = document.getElementById("trouble");
const form = document.getElementById("token");
const links = document.getElementById("models");
const main = document.getElementById("main");
const views = new Map();

const queue = new Queue((message, wantsToken = false) => {
  // Said again, a screen reader would read it again.
  if (trouble.textContent !== message) trouble.textContent = message;
  form.hidden = !wantsToken;
});

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const field = form.querySelector("input");
  queue.authorise(field.value.trim());
  field.value = "";
});

const fragment = (name) => `#${encodeURIComponent(name)}`;

async function describe(name) {
  try {
    return (await call(`/v2/models/${encodeURIComponent(name)}`)).document;
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    return { name };
  }
}

async function loadModels() {
  const { models } = (await call("/v1/models")).document;
  for (const name of models) if (!views.has(name)) views.set(name, await describe(name));
  for (const name of views.keys()) if (!models.includes(name)) views.delete(name);
  links.replaceChildren(
    ...models.map((name) => {
      const link = document.createElement("a");
      link.href = fragment(name);
      link.textContent = name;
      return link;
    }),
  );
  show();
}

function show() {
  const [first] = views.keys();
  const name = [...views.keys()].find((each) => fragment(each) === location.hash) ?? first;
  document.title = name ? `${name} – Model server` : "Model server";
  for (const link of links.children) {
    if (link.textContent === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!name) {
    main.textContent = "The service has no models.";
    return;
  }
  let view = views.get(name);
  if (!(view instanceof View)) {
    view = new View({ ...view, name }, queue, () => queue.submit("models", loadModels));
    views.set(name, view);
  }
  if (main.firstChild !== view.element) main.replaceChildren(view.element);
}

addEventListener("hashchange", show);
queue.submit("models", loadModels);
