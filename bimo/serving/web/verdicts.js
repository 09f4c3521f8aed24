// What the guard found, in words and as marks in a text.

import { h } from "./dom.js";

const ACTIONS = { note: "guard.note", mask: "guard.mask", refuse: "guard.refuse" };

/** The verdicts of an answer or a text as a list; nothing when there are none. */
export function verdictList(verdicts) {
  if (!verdicts?.length) return null;
  return h("ul", { class: "verdicts", label: "guard.verdicts" }, verdicts.map(verdictItem));
}

function verdictItem(verdict) {
  const action = ACTIONS[verdict.action] ? verdict.action : "note";
  return h(
    "li",
    { "data-action": action },
    h("span", { class: "seal", words: ACTIONS[action] }),
    h("span", { class: "mono" }, String(verdict.rule)),
    typeof verdict.score === "number" ? h("span", { class: "number quiet" }, verdict.score.toFixed(2)) : null,
  );
}

/**
 * A text with marks where verdicts point. Their places count characters as Python does, so a text is cut by code points:
 * an emoji is one, and not the two that JavaScript counts.
 */
export function marked(text, verdicts) {
  const characters = Array.from(text);
  const pieces = [];
  let done = 0;
  for (const { start, end, action, rule } of places(verdicts, characters.length)) {
    if (start < done) continue; // it lies in one that is marked already
    pieces.push(characters.slice(done, start).join(""));
    pieces.push(h("mark", { "data-action": action, title: rule }, characters.slice(start, end).join("")));
    done = end;
  }
  pieces.push(characters.slice(done).join(""));
  return h("p", { class: "marked" }, pieces);
}

const places = (verdicts, length) =>
  verdicts
    .filter(({ start, end }) => Number.isInteger(start) && end > start && end <= length)
    .sort((a, b) => a.start - b.start || b.end - a.end);
