// The chat: a conversation that is written while one watches, can be stopped, asked again and taken back.

import { answers } from "./answers.js";
import { copyText } from "./copying.js";
import { Conversation } from "./conversation.js";
import { h, newId, put, refill } from "./dom.js";
import { remember, say, t } from "./language.js";
import { chosenModel, knowsChat } from "./models.js";
import { legend } from "./tokens.js";
import { TurnView } from "./turn.js";

const BREATH_MS = 12;

export class Chat {
  #conversation = new Conversation();
  #views = new Map();
  #stopper = null;
  #list = h("ol", { class: "turns", label: "chat.turns" });
  #empty = h("div", { class: "welcome" }, h("p", { class: "brush", "aria-hidden": "true" }, "笔墨"), h("p", { words: "chat.empty" }));
  #told = h("p", { class: "unseen", role: "status", "aria-live": "polite" }); // hears of beginnings and ends, not of tokens
  #settings = new ChatSettings(() => this.#drawAll());

  constructor() {
    this.element = h("div", { class: "chat" }, this.#empty, this.#list, this.#told, this.#composer());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.#stopper && !this.element.closest("[hidden]")) this.#stop();
    });
    document.addEventListener("modelchange", () => say(this.input, { hint: knowsChat() ? "chat.hint" : "chat.continue" }));
    this.#drawAll();
  }

  shown() {
    // Not on a telephone, where the keyboard would cover half of the page.
    if (document.activeElement === document.body && matchMedia("(hover: hover)").matches) this.input.focus({ preventScroll: true });
    this.#scroll(true);
  }

  #composer() {
    const id = newId("message");
    this.input = h("textarea", { id, rows: "1", hint: "chat.hint", maxlength: "100000", on: { keydown: (e) => this.#key(e), input: () => this.#grow() } });
    this.send = h("button", { type: "submit", class: "primary", words: "chat.send" });
    this.halt = h("button", { type: "button", class: "primary", hidden: true, words: "chat.stop", on: { click: () => this.#stop() } });
    this.anew = h("button", { type: "button", class: "plain", words: "chat.new", on: { click: () => this.#clear() } });
    const submit = (event) => (event.preventDefault(), this.#ask());
    return h(
      "form",
      { class: "composer", on: { submit } },
      h("label", { for: id, class: "unseen", words: "chat.message" }),
      h("div", { class: "paper" }, this.input, this.send, this.halt),
      h("div", { class: "row composer-foot" }, this.#settings.element, this.anew),
    );
  }

  /** Enter sends. Not while an input method is composing: there it chooses a word. */
  #key(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    this.#ask();
  }

  #grow() {
    this.input.style.blockSize = "auto";
    this.input.style.blockSize = `${Math.min(this.input.scrollHeight, innerHeight * 0.4)}px`;
  }

  #ask() {
    const content = this.input.value.trim();
    if (!content || this.#stopper) return;
    this.input.value = "";
    this.#grow();
    this.#show(this.#conversation.add({ role: "user", content }));
    this.#answer();
  }

  /** Ask for an answer to the conversation as it stands. */
  async #answer() {
    const { tokens, ...parameters } = this.#settings.values();
    const said = this.#conversation.messages();
    const turn = this.#conversation.add({ role: "assistant", content: "", model: chosenModel(), tokens: tokens ? [] : undefined });
    const view = this.#show(turn);
    view.start(tokens);
    this.#busy(new AbortController());
    this.#told.textContent = t("chat.writing");
    try {
      let rested = performance.now();
      for await (const piece of answers(said, parameters, tokens, this.#stopper.signal)) {
        this.#take(turn, view, piece);
        if (performance.now() - rested < BREATH_MS) continue;
        this.#scroll(); // measuring makes the browser lay the page out, which is too much for each token
        await new Promise((resolve) => setTimeout(resolve)); // a fast model must not keep the keyboard waiting
        rested = performance.now();
      }
    } catch (error) {
      if (error.name === "AbortError") turn.finish = "stopped";
      else turn.error = error;
    }
    this.#busy(null);
    view.draw(tokens);
    this.#told.textContent = turn.content ? `${t("chat.done")} ${turn.content}` : t("chat.done");
    this.#keep();
    this.#scroll();
  }

  #take(turn, view, { text, tokens, finish, bimo }) {
    if (bimo?.guard) turn.verdicts = [...(turn.verdicts ?? []), ...bimo.guard];
    if (bimo?.route) {
      if (!turn.model) turn.reason = bimo.route.reason; // why this one, when nobody chose
      turn.model = bimo.route.model;
      view.name();
    }
    turn.content += text;
    turn.tokens?.push(...(tokens ?? []));
    turn.finish = finish ?? turn.finish;
    if (text || tokens) view.push(text, tokens);
  }

  #busy(stopper) {
    this.#stopper = stopper;
    const held = document.activeElement === this.send || document.activeElement === this.halt;
    this.send.hidden = this.halt.hidden = false;
    (stopper ? this.send : this.halt).hidden = true;
    this.anew.disabled = stopper !== null;
    this.element.toggleAttribute("data-busy", stopper !== null);
    if (held) (stopper ? this.halt : this.input).focus(); // what had the focus has gone
  }

  #stop() {
    this.#stopper?.abort();
  }

  #clear() {
    this.#conversation.clear();
    this.#drawAll();
    this.input.focus();
  }

  /** Take back an answer, and ask once more. */
  #again(turn) {
    if (this.#stopper) return;
    this.#conversation.cut(turn);
    this.#drawAll();
    this.#answer();
    this.halt.focus({ preventScroll: true });
  }

  /** Take back a question and its answer, and put it into the field. */
  #edit(turn) {
    if (this.#stopper) return;
    this.input.value = turn.content;
    this.#conversation.cut(turn);
    this.#drawAll();
    this.#grow();
    this.input.focus();
  }

  #show(turn) {
    const mine = turn.role === "user";
    const view = new TurnView(turn, {
      copy: () => copyText(turn.content, this.#told),
      edit: mine ? () => this.#edit(turn) : null,
      again: mine ? null : () => this.#again(turn),
    });
    this.#views.set(turn, view);
    view.draw(this.#settings.tokens);
    put(this.#list, view.element);
    this.#last();
    this.#scroll(true);
    return view;
  }

  #drawAll() {
    if (this.#stopper) return; // it is drawn when it is finished
    refill(this.#list);
    this.#views.clear();
    this.#last();
    for (const turn of this.#conversation.turns) this.#show(turn);
  }

  /** The newest question and the newest answer have more buttons. */
  #last() {
    const { turns } = this.#conversation;
    const of = (role) => turns.findLast((turn) => turn.role === role);
    for (const [turn, view] of this.#views) view.setLast(turn === of(turn.role));
    this.#empty.hidden = turns.length > 0;
    this.anew.hidden = turns.length === 0;
  }

  #keep() {
    const unkept = this.#conversation.turns.filter((turn) => turn.error && !turn.content);
    this.#conversation.keep();
    if (unkept.length) this.#last();
  }

  /** Keep the end in sight, unless the reader has gone up to read. */
  #scroll(always = false) {
    const page = document.documentElement;
    const near = page.scrollHeight - innerHeight - scrollY < 120;
    if (always || near) scrollTo({ top: page.scrollHeight });
  }
}

/** How answers are made: kept by this browser. */
class ChatSettings {
  #fields = {};

  constructor(changed) {
    const id = newId("settings");
    const inner = h(
      "div",
      { class: "settings", id },
      this.#number("temperature", { min: 0, max: 2, step: 0.1, value: 0.8 }),
      this.#number("max_tokens", { min: 1, max: 4096, step: 1, value: 256 }),
    );
    this.#fields.tokens = h("input", { type: "checkbox", on: { change: () => (this.#keep(), this.#showLegend(), changed()) } });
    this.#fields.tokens.checked = read().tokens ?? true;
    this.legend = legend();
    this.element = h(
      "div",
      { class: "row chat-settings" },
      h("label", { class: "check" }, this.#fields.tokens, h("span", { words: "tokens.show" })),
      this.legend,
      h("details", {}, h("summary", { words: "chat.settings" }), inner),
    );
    this.#showLegend();
  }

  get tokens() {
    return this.#fields.tokens.checked;
  }

  /** What goes into a request. A field that holds nothing sensible is left to the server. */
  values() {
    const number = (name) => (this.#fields[name].checkValidity() ? this.#fields[name].valueAsNumber : NaN);
    const found = { tokens: this.tokens };
    for (const name of ["temperature", "max_tokens"]) if (!Number.isNaN(number(name))) found[name] = number(name);
    return found;
  }

  #number(name, limits) {
    const id = newId(name);
    this.#fields[name] = h("input", { id, type: "number", inputmode: "decimal", ...limits, value: read()[name] ?? limits.value, on: { change: () => this.#keep() } });
    return h("div", { class: "field" }, h("label", { for: id, words: `chat.${name}` }), this.#fields[name]);
  }

  #showLegend() {
    this.legend.hidden = !this.tokens;
  }

  #keep() {
    remember("bimo.chat", JSON.stringify(this.values()));
  }
}

function read() {
  try {
    return JSON.parse(localStorage.getItem("bimo.chat")) ?? {};
  } catch {
    return {};
  }
}
