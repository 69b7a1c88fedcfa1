// Talks to the service: one request at a time, and what to do where there is no answer.

/** The service refuses this request, and would refuse it again. */
export class Refusal extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** No answer now; it may be asked again after some seconds, if it says how many. */
class Trouble extends Error {
  constructor(message, seconds) {
    super(message);
    this.seconds = seconds;
  }
}

class TokenNeeded extends Error {}

// Longer than the door waits for a model, so that its own answer comes first.
const TIMEOUT_MS = 35_000;
const PASSING = new Set([408, 429, 502, 503, 504]);
let token = "";

/**
 * One request.
 *
 * @returns {Promise<{document: any, ms: number, id: string}>} the JSON answered, or undefined where
 *   it was not JSON, the time until the whole answer was here, and the id in the service's log.
 */
export async function call(path, body, type) {
  const headers = { Accept: "application/json" };
  if (type) headers["Content-Type"] = type;
  if (token) headers.Authorization = `Bearer ${token}`;
  const begin = performance.now();
  let response, text;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      body,
      headers,
      cache: "no-store",
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    text = await response.text();
  } catch {
    throw new Trouble("The service cannot be reached.");
  }
  const ms = performance.now() - begin;
  let document;
  try {
    document = JSON.parse(text);
  } catch {
    // Of a proxy, or of a model that answers in another form.
  }
  if (response.ok) return { document, ms, id: response.headers.get("X-Request-Id") ?? "" };
  const message = document?.message ?? document?.error ?? `status ${response.status}`;
  if (response.status === 401) {
    throw new TokenNeeded(
      token ? "The service does not know this token." : "The service wants a bearer token.",
    );
  }
  if (PASSING.has(response.status)) {
    const seconds = Number(response.headers.get("Retry-After")) || undefined;
    throw new Trouble(`The service cannot answer now: ${message}.`, seconds);
  }
  throw new Refusal(message, response.status);
}

/**
 * Tasks that are done one after another, each under a key: a later one takes the place of one that
 * still waits. A task that met trouble is tried again, unless a later one has taken its place.
 */
export class Queue {
  #tasks = new Map();
  #busy = false;
  #failures = 0;
  #resume;

  /** @param tell called with a message and whether a token is wanted, or with "" once all is well */
  constructor(tell) {
    this.tell = tell;
  }

  submit(key, task) {
    this.#tasks.set(key, task);
    if (!this.#busy) this.#work();
  }

  withdraw(key) {
    this.#tasks.delete(key);
  }

  /** Go on with a bearer token. */
  authorise(value) {
    token = value;
    this.#resume?.();
  }

  async #work() {
    this.#busy = true;
    while (this.#tasks.size) {
      const [key, task] = this.#tasks.entries().next().value;
      this.#tasks.delete(key);
      try {
        await task();
        this.#failures = 0;
        this.tell("");
      } catch (error) {
        if (error instanceof Trouble || error instanceof TokenNeeded) {
          if (!this.#tasks.has(key)) this.#tasks.set(key, task);
          await this.#pause(error);
        } else {
          reportError(error);
        }
      }
    }
    this.#busy = false;
  }

  #pause(error) {
    const resumed = new Promise((resolve) => (this.#resume = resolve));
    if (error instanceof TokenNeeded) {
      this.tell(error.message, true);
      return resumed;
    }
    const seconds = error.seconds ?? Math.min(2 ** this.#failures++, 5);
    this.tell(`${error.message} Trying again${seconds > 5 ? ` in ${seconds} s` : ""}.`);
    setTimeout(this.#resume, seconds * 1000);
    return resumed;
  }
}
