// Elements are made here and nowhere else. Text only ever becomes a text node: there is no way to hand in HTML, so what
// a model, a user or a run's name holds cannot become part of the page.

import { say } from "./language.js";

const SVG = "http://www.w3.org/2000/svg";

/**
 * Make an element.
 * Properties: `words`, `label`, `hint`, `tip` name a row of words.js (text, aria-label, placeholder, title), with `values` for what it has in
 * braces; `on` maps events to functions; everything else is an attribute, left out when null or false.
 */
export function h(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** The same for a drawing. */
export function s(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(element, props, children) {
  const { words, label, hint, tip, values, on = {}, ...attributes } = props;
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "style" || name.startsWith("on")) throw new Error(`${name} is not set from here`);
    element.setAttribute(name, value === true ? "" : String(value));
  }
  if (words || label || hint || tip) say(element, { words, label, hint, tip, values });
  for (const [event, listener] of Object.entries(on)) element.addEventListener(event, listener);
  put(element, ...children);
  return element;
}

/** Append nodes and texts; null is nothing. */
export function put(element, ...children) {
  for (const child of children.flat()) if (child !== null && child !== undefined && child !== false) element.append(child);
  return element;
}

/** Replace all that an element holds. */
export function refill(element, ...children) {
  element.replaceChildren();
  return put(element, ...children);
}

/** An id that no other element has: labels and descriptions point to it. */
let made = 0;
export function newId(prefix) {
  made += 1;
  return `${prefix}-${made}`;
}
