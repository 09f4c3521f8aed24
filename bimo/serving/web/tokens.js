// A text token by token: tinted by how unlikely each was, with what else could have stood there on hover and on focus.

import { h, newId, put, refill } from "./dom.js";
import { percent } from "./language.js";

// The lower bounds of the tints; what is likelier than the first has none. Each tint also has an underline of its own,
// because colour alone tells some readers nothing.
const LEVELS = [0.5, 0.2, 0.05];

const MOST_REST = 8; // characters

/** Tokens that only together are whole characters: one of them alone may be a third of a Chinese character. */
export class Groups {
  #decoder = new TextDecoder("utf-8", { ignoreBOM: true }); // what is broken becomes U+FFFD, as at the server
  #encoder = new TextEncoder();
  #waiting = [];
  #bytes = [];

  /** Take a token; give the group that it completes, or null. */
  push(token) {
    this.#waiting.push(token);
    this.#bytes.push(...(token.bytes ?? this.#encoder.encode(token.token)));
    return endsInside(this.#bytes) ? null : this.finish();
  }

  /** What is left at the end: bytes that are no characters, as the text shows them. */
  finish() {
    if (!this.#waiting.length) return null;
    const group = { text: this.#decoder.decode(new Uint8Array(this.#bytes)), tokens: this.#waiting };
    this.#waiting = [];
    this.#bytes = [];
    return group;
  }
}

/** Whether bytes of UTF-8 end inside of a character, so that the next token may complete it. */
function endsInside(bytes) {
  for (let back = 1; back <= Math.min(3, bytes.length); back += 1) {
    const byte = bytes.at(-back);
    if ((byte & 0xc0) === 0x80) continue; // not the first byte of a character
    const length = byte >= 0xf5 || byte < 0xc2 ? 1 : byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : 2;
    return length > back;
  }
  return false;
}

/** How unlikely, as a step 0 … 3. */
export function level(logprob) {
  const share = Math.exp(logprob);
  const step = LEVELS.findIndex((bound) => share >= bound);
  return step < 0 ? LEVELS.length : step;
}

/** A line of tokens: one stop of the Tab key, in which the arrow keys go from token to token. */
export class TokenLine {
  #groups = new Groups();
  #shown = [];

  constructor() {
    const on = {
      pointerover: (event) => this.#point(event.target),
      pointerout: () => card.hide(),
      focusin: (event) => this.#point(event.target),
      focusout: () => card.hide(),
      keydown: (event) => this.#move(event),
      click: (event) => this.#spans.includes(event.target) && event.target.focus(),
    };
    this.element = h("div", { class: "tokens", role: "group", label: "tokens.label", on });
  }

  /** The text so far. */
  get text() {
    return this.#shown.map((group) => group.text).join("");
  }

  get #spans() {
    return [...this.element.children];
  }

  /** Show more tokens. */
  push(tokens) {
    for (const token of tokens) this.#add(this.#groups.push(token));
  }

  /** Show a whole text; says whether the tokens are it. Of an answer that was stopped, tokens may have run ahead. */
  write(tokens, text) {
    this.push(tokens);
    this.#add(this.#groups.finish());
    const wanted = text.trimEnd();
    let length = this.text.trimEnd().length;
    while (length > wanted.length) {
      length -= this.#shown.pop().text.length;
      this.element.lastChild.remove();
    }
    const rest = wanted.slice(this.text.length);
    if (rest.length > MOST_REST || !wanted.startsWith(this.text.trimEnd())) return false;
    this.#add({ text: rest, tokens: [] }); // it ends inside of a token
    return true;
  }

  #add(group) {
    if (!group || group.text === "") return; // an end is a token without a text
    const total = group.tokens.reduce((sum, token) => sum + token.logprob, 0);
    const first = this.#shown.length === 0;
    this.#shown.push(group);
    put(this.element, h("span", { class: "token", "data-level": level(total), tabindex: first ? "0" : "-1" }, group.text));
  }

  #point(span) {
    const number = this.#spans.indexOf(span);
    if (number >= 0 && this.#shown[number].tokens.length) card.show(span, this.#shown[number]);
  }

  #move(event) {
    const spans = this.#spans;
    const at = spans.indexOf(event.target);
    const goal = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: spans.length - 1 }[event.key];
    if (event.key === "Escape" && card.open) {
      card.hide();
      event.stopPropagation();
    }
    if (goal === undefined || at < 0) return;
    event.preventDefault();
    const next = spans[Math.max(0, Math.min(goal, spans.length - 1))];
    spans[at].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}

/** Spaces and line breaks as signs, so that a token that is nothing else can be seen. */
export const visible = (text) => text.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥") || "∅";

/** The one card of alternatives, beside the token that it is about. */
class Card {
  #about = null;
  #element = null;

  get open() {
    return this.#about !== null;
  }

  show(span, group) {
    this.hide();
    this.#about = span;
    refill(this.#place(), ...group.tokens.map((token) => alternatives(token, group.tokens.length > 1)));
    this.#element.hidden = false;
    span.setAttribute("aria-describedby", this.#element.id);
    this.#move(span.getClientRects()[0] ?? span.getBoundingClientRect());
  }

  hide() {
    if (!this.#about) return;
    this.#about.removeAttribute("aria-describedby");
    this.#about = null;
    this.#element.hidden = true;
  }

  #place() {
    if (!this.#element) {
      this.#element = h("div", { class: "card", role: "tooltip", id: newId("card"), hidden: true });
      document.body.append(this.#element);
      addEventListener("scroll", () => this.hide(), { capture: true, passive: true });
    }
    return this.#element;
  }

  /** Below the token, or above it where there is no room; never outside of the window. */
  #move(box) {
    const { offsetWidth: width, offsetHeight: height } = this.#element;
    const left = Math.max(8, Math.min(box.left, innerWidth - width - 8));
    const below = box.bottom + 6;
    const top = below + height < innerHeight - 8 ? below : Math.max(8, box.top - height - 6);
    this.#element.style.left = `${left}px`;
    this.#element.style.top = `${top}px`;
  }
}

const card = new Card();

function alternatives(token, isPart) {
  const others = token.top_logprobs ?? [];
  const among = others.some((other) => other.token === token.token);
  const rows = among ? others : [...others, token];
  const name = isPart && token.bytes ? token.bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(" ") : visible(token.token);
  return h(
    "div",
    { class: "card-part" },
    h("p", { class: "card-head" }, h("span", { class: "mono" }, name), h("strong", {}, percent(Math.exp(token.logprob)))),
    h("ol", {}, rows.map((row) => alternative(row, row.token === token.token))),
  );
}

function alternative(row, chosen) {
  const share = Math.exp(row.logprob);
  const bar = h("span", { class: "bar", "aria-hidden": "true" });
  bar.style.inlineSize = `${100 * share}%`;
  return h(
    "li",
    { class: chosen ? "chosen" : null },
    h("span", { class: "mono" }, visible(row.token)),
    h("span", { class: "track" }, bar),
    h("span", { class: "number" }, percent(share)),
  );
}

/** What the tints mean. */
export function legend() {
  const names = ["tokens.likely", "tokens.open", "tokens.unlikely", "tokens.surprise"];
  const part = (words, step) => h("li", {}, h("span", { class: "token", "data-level": step, words }));
  return h("ul", { class: "legend", label: "tokens.legend" }, names.map(part));
}
