// The states that every view has beside its content: waiting, nothing there, and what went wrong with a way out.

import { setKey } from "./api.js";
import { h, newId, refill } from "./dom.js";

const TITLES = {
  unreachable: "error.unreachable",
  key: "error.key",
  busy: "error.busy",
  starting: "error.starting",
  missing: "error.missing",
  refused: "error.refused",
  broken: "error.broken",
};

export const waiting = (words = "state.loading") =>
  h("p", { class: "waiting", role: "status" }, h("span", { class: "drop", "aria-hidden": "true" }), h("span", { words }));

export const nothing = (words, more) =>
  h("div", { class: "nothing" }, h("p", { words }), more ? h("p", { class: "quiet", words: more }) : null);

/** What went wrong, in the server's own words where it gave some, and a button that tries again. */
export function problem(error, again) {
  const kind = TITLES[error.kind] ? error.kind : "broken";
  if (!TITLES[error.kind]) console.error(error); // a fault of the page itself: for whoever looks
  return h(
    "div",
    { class: "problem", role: "alert" },
    h("p", { class: "problem-title", words: TITLES[kind] }),
    error.message ? h("p", { class: "problem-told" }, error.message) : null,
    error.wait ? h("p", { class: "quiet", words: "error.wait", values: { seconds: error.wait } }) : null,
    kind === "key" ? keyForm(again) : null,
    again && kind !== "key" ? h("button", { type: "button", words: "action.retry", on: { click: again } }) : null,
  );
}

function keyForm(again) {
  const id = newId("key");
  const input = h("input", { id, type: "password", autocomplete: "off", required: true, spellcheck: "false" });
  const use = (event) => {
    event.preventDefault();
    setKey(input.value.trim());
    if (again) again();
  };
  return h(
    "form",
    { class: "key-form", on: { submit: use } },
    h("label", { for: id, words: "key.label" }),
    h("div", { class: "row" }, input, h("button", { type: "submit", class: "primary", words: "key.use" })),
    h("p", { class: "quiet", words: "key.kept" }),
  );
}

/** Fill a place with what some work gives: waiting first, then its drawing, or what went wrong. */
export async function show(place, work, draw) {
  refill(place, waiting());
  place.setAttribute("aria-busy", "true");
  try {
    const found = await work();
    refill(place, draw(found));
  } catch (error) {
    if (error.name === "AbortError") return;
    refill(place, problem(error, () => show(place, work, draw)));
  } finally {
    place.removeAttribute("aria-busy");
  }
}
