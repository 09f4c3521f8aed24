// The server's answers: JSON, and streams of events. Whatever goes wrong becomes one ApiError with a kind, so that each
// view can show the same few states.

let key = read("bimo.key");

/** What went wrong. `kind`: unreachable, key, busy, starting, missing, refused (our request), broken (the server). */
export class ApiError extends Error {
  constructor(kind, message, { status = 0, code = "", wait = 0 } = {}) {
    super(message);
    Object.assign(this, { kind, status, code, wait });
  }
}

/** Use a key from now on, until the tab is closed. Without one the browser itself asks, if the server wants that. */
export function setKey(text) {
  key = text;
  try {
    sessionStorage.setItem("bimo.key", text);
  } catch {
    // it holds until the page is left
  }
}

export async function get(path, signal) {
  return (await ask(path, { signal })).json();
}

export async function post(path, body, signal) {
  return (await ask(path, { method: "POST", body, signal })).json();
}

/** The JSON of each event of a stream, up to [DONE]. */
export async function* stream(path, body, signal) {
  const answer = await ask(path, { method: "POST", body, signal });
  for await (const data of events(answer.body)) {
    if (data === "[DONE]") return;
    const value = JSON.parse(data);
    if (value.error) throw failure(500, value.error, 0);
    yield value;
  }
  throw new ApiError("broken", ""); // it ended without saying so: half an answer must not look like a whole one
}

async function ask(path, { method = "GET", body, signal }) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (key) headers.Authorization = `Bearer ${key}`;
  let answer;
  try {
    // With a key of the page's own the browser keeps out of it: it would ask for one in a window of its own.
    const credentials = key ? "omit" : "same-origin";
    const content = body === undefined ? undefined : JSON.stringify(body);
    answer = await fetch(path, { method, headers, signal, credentials, body: content });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("unreachable", "");
  }
  if (answer.ok) {
    document.dispatchEvent(new Event("reachable"));
    return answer;
  }
  let told = {};
  try {
    told = (await answer.json()).error || {};
  } catch {
    // a proxy between us answers in HTML; the status says enough
  }
  throw failure(answer.status, told, Number(answer.headers.get("Retry-After")) || 0);
}

const KINDS = { 401: "key", 403: "key", 404: "missing", 429: "busy", 502: "starting", 503: "starting", 504: "starting" };

function failure(status, told, wait) {
  const kind = KINDS[status] || (status >= 500 ? "broken" : "refused");
  return new ApiError(kind, String(told.message || ""), { status, code: String(told.code || told.type || ""), wait });
}

/** The data of each server-sent event; a chunk of the network may end inside a line, or inside a character. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stops listening frees the place at the server
  }
}

function read(name) {
  try {
    return sessionStorage.getItem(name) || "";
  } catch {
    return "";
  }
}
