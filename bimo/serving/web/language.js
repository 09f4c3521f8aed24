// The page's language. An element remembers which words it shows, so a change of language reaches every element that is
// there, also in the middle of an answer, and nothing has to be drawn again.

import { WORDS } from "./words.js";

const NAMES = { words: null, label: "aria-label", hint: "placeholder", tip: "title" };
const shown = new WeakMap();
let number = document.documentElement.lang.startsWith("zh") ? 1 : 0;

export const language = () => (number ? "zh" : "en");
export const locale = () => (number ? "zh-CN" : "en-GB");

/** The words of a row in the present language, with values in the place of {names}. */
export function t(key, values = {}) {
  const row = WORDS[key];
  if (!row) throw new Error(`words.js has no row ${key}`);
  return row[number].replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

/** Show words in an element, now and after a change of language. */
export function say(element, what) {
  shown.set(element, what);
  element.dataset.said = "";
  write(element, what);
  return element;
}

function write(element, what) {
  for (const [kind, attribute] of Object.entries(NAMES)) {
    if (!what[kind]) continue;
    const text = t(what[kind], what.values);
    if (attribute) element.setAttribute(attribute, text);
    else element.textContent = text;
  }
}

/** Change the language of the whole page. */
export function setLanguage(code) {
  number = code === "zh" ? 1 : 0;
  document.documentElement.lang = number ? "zh-Hans" : "en";
  remember("bimo.language", language());
  for (const element of document.querySelectorAll("[data-said]")) write(element, shown.get(element));
  document.dispatchEvent(new Event("languagechange")); // drawings write their words into a canvas or an SVG
}

/** Keep a preference of this browser; storage can be forbidden or full. */
export function remember(key, value) {
  try {
    if (value) localStorage.setItem(key, value);
    else localStorage.removeItem(key);
  } catch {
    // it holds until the page is left
  }
}

export const amount = (value, digits = 0) =>
  new Intl.NumberFormat(locale(), { maximumFractionDigits: digits, minimumFractionDigits: 0 }).format(value);

/** A share 0 … 1 as a percentage that never claims certainty it does not have. */
export function percent(share) {
  if (share === 0) return "0%";
  if (share > 0.9995 && share < 1) return ">99.9%";
  if (share > 0 && share < 0.0005) return "<0.1%";
  return `${(100 * share).toFixed(share >= 0.1 ? 0 : 1)}%`;
}

export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const step = count > 0 ? Math.min(units.length - 1, Math.floor(Math.log10(count) / 3)) : 0;
  return `${amount(count / 1000 ** step, step > 1 && count / 1000 ** step < 100 ? 1 : 0)} ${units[step]}`;
}
