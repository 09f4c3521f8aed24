// Translate, summarise and classify: a text on the left, what the model makes of it beside it.

import { post } from "./api.js";
import { copyText } from "./copying.js";
import { h, newId, refill } from "./dom.js";
import { language, percent } from "./language.js";
import { chosenModel } from "./models.js";
import { nothing, problem, waiting } from "./states.js";
import { verdictList } from "./verdicts.js";

// As bimo.tasks.languages has them.
const LANGUAGES =
  "ar bg bn ca cs da de el en es et fa fi fr he hi hr hu id it ja ko lt lv ms nl no pl pt ro ru sk sl sr sv ta th tr uk ur vi zh".split(" ");

/** Translation. */
export function translateView() {
  const source = languageField("apply.from", "apply.any", "");
  const target = languageField("apply.to", null, language() === "zh" ? "zh" : "de");
  return new Beside({
    name: "translate",
    fields: [source.element, target.element],
    body: () => ({ target: target.value, ...(source.value && { source: source.value }) }),
    draw: drawText,
    lang: () => target.value,
  });
}

export const summarizeView = () => new Beside({ name: "summarize", fields: [], body: () => ({}), draw: drawText });

export function classifyView() {
  const id = newId("labels");
  const input = h("input", { id, type: "text", hint: "classify.hint", maxlength: "2000" });
  const field = h("div", { class: "field wide" }, h("label", { for: id, words: "classify.labels" }), input);
  const labels = () => [...new Set(input.value.split(/[,，、;；\n]/).map((label) => label.trim()).filter(Boolean))];
  return new Beside({
    name: "classify",
    fields: [field],
    body: () => (labels().length ? { labels: labels() } : {}), // without any: those that the model was trained for
    draw: drawLabels,
  });
}

/** The frame that the three share. */
class Beside {
  #told = h("p", { class: "unseen", role: "status" });
  #stopper = null;

  /** `body` gives what goes into the request beside model and input; `draw` a result; `lang` the language of it. */
  constructor({ name, fields, body, draw, lang = () => "" }) {
    Object.assign(this, { name, body, drawResult: draw, lang });
    const id = newId("source");
    this.input = h("textarea", { id, rows: "10", maxlength: "200000", hint: `${name}.hintText`, on: { keydown: (event) => this.#key(event) } });
    this.go = h("button", { type: "submit", class: "primary", words: `${name}.go` });
    this.halt = h("button", { type: "button", hidden: true, words: "chat.stop", on: { click: () => this.#stopper?.abort() } });
    this.output = h("div", { class: "result" }, nothing(`${name}.empty`));
    const submit = (event) => (event.preventDefault(), this.#run());
    this.element = h(
      "div",
      { class: "beside" },
      h(
        "form",
        { class: "side", on: { submit } },
        h("label", { for: id, class: "side-title", words: "apply.text" }),
        this.input,
        h("div", { class: "row" }, fields, h("span", { class: "push" }, this.halt, this.go)),
      ),
      h("section", { class: "side", label: "apply.result" }, h("h2", { class: "side-title", words: "apply.result" }), this.output, this.#told),
    );
  }

  #key(event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.#run();
    if (event.key === "Escape") this.#stopper?.abort();
  }

  async #run() {
    if (!this.input.value.trim()) return this.input.focus();
    this.#stopper?.abort();
    const stopper = (this.#stopper = new AbortController());
    this.#busy(true);
    refill(this.output, waiting(`${this.name}.working`));
    try {
      const body = { model: chosenModel(), input: this.input.value, ...this.body() };
      const found = await post(`/v1/${this.name}`, body, stopper.signal);
      this.#draw(found);
    } catch (error) {
      if (stopper !== this.#stopper) return; // a newer one is under way
      if (error.name === "AbortError") refill(this.output, nothing("chat.stopped"));
      else refill(this.output, problem(error, () => this.#run()));
    }
    if (stopper === this.#stopper) this.#busy(false);
  }

  #draw(found) {
    const result = found.results[0];
    const { element, text } = this.drawResult(result, this.lang());
    refill(
      this.output,
      element,
      warnings(result.warnings),
      verdictList(found.bimo?.guard),
      h(
        "div",
        { class: "row result-foot" },
        h("span", { class: "quiet mono" }, found.bimo?.route && !chosenModel() ? `${found.model} · ${found.bimo.route.reason}` : found.model),
        h("button", { type: "button", class: "plain", words: "action.copy", on: { click: () => copyText(text, this.#told) } }),
      ),
    );
    this.#told.textContent = text;
  }

  #busy(busy) {
    const held = document.activeElement === this.halt;
    this.halt.hidden = !busy;
    if (held && !busy) this.input.focus();
  }
}

const drawText = (result, lang) => ({ element: h("p", { class: "text", lang: lang || null, dir: "auto" }, result.text), text: result.text });

function drawLabels(result) {
  const rows = Object.entries(result.probabilities).sort((a, b) => b[1] - a[1]);
  const row = ([label, share]) => {
    const bar = h("span", { class: "bar", "aria-hidden": "true" });
    bar.style.inlineSize = `${100 * share}%`;
    const chosen = label === result.label ? "chosen" : null;
    return h("li", { class: chosen }, h("span", {}, label), h("span", { class: "track" }, bar), h("span", { class: "number" }, percent(share)));
  };
  const list = h("ol", { class: "labels" }, rows.map(row));
  return { element: h("div", {}, h("p", { class: "verdict-label" }, result.label), list), text: result.label };
}

const warnings = (list) =>
  list?.length ? h("ul", { class: "warnings", label: "apply.warnings" }, list.map((warning) => h("li", {}, warning))) : null;

/** A field of languages; their names in the page's own language come from the browser. */
function languageField(words, any, chosen) {
  const id = newId("language");
  const select = h("select", { id });
  const draw = () => {
    const value = select.value || chosen;
    const names = new Intl.DisplayNames([language()], { type: "language" });
    const rows = LANGUAGES.map((code) => [code, names.of(code)]).sort((a, b) => a[1].localeCompare(b[1], language()));
    refill(select, any ? h("option", { value: "", words: any }) : null, rows.map(([code, name]) => h("option", { value: code }, name)));
    select.value = value;
  };
  draw();
  document.addEventListener("languagechange", draw);
  return { element: h("div", { class: "field" }, h("label", { for: id, words }), select), get value() { return select.value; } };
}
