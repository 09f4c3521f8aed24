// Attention: how much each token looks at each token before it, for a chosen layer and head, as a picture and as the
// text itself.

import { post } from "./api.js";
import { h, newId, refill } from "./dom.js";
import { percent, t } from "./language.js";
import { chosenModel } from "./models.js";
import { HeatMap } from "./heatmap.js";
import { nothing, problem, waiting } from "./states.js";
import { visible } from "./tokens.js";

export class Attention {
  #stopper = null;
  #found = null;
  #place = h("div", { class: "result attention-result" }, nothing("attention.empty"));

  constructor() {
    const id = newId("text");
    const submit = (event) => (event.preventDefault(), this.#ask());
    this.input = h("textarea", { id, rows: "2", maxlength: "2000", hint: "attention.hint" });
    this.input.addEventListener("keydown", (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing && submit(event));
    this.layer = this.#choice("attention.layer");
    this.head = this.#choice("attention.head");
    const go = h("button", { type: "submit", class: "primary", words: "attention.go" });
    this.element = h(
      "div",
      { class: "attention" },
      h(
        "form",
        { class: "side", on: { submit } },
        h("label", { for: id, class: "side-title", words: "apply.text" }),
        this.input,
        h("div", { class: "row" }, this.layer.element, this.head.element, h("span", { class: "push" }, go)),
      ),
      this.#place,
    );
    document.addEventListener("modelchange", () => this.#found && this.#ask());
  }

  #choice(words) {
    const id = newId("choice");
    const select = h("select", { id, on: { change: () => this.#found && this.#ask() } }, h("option", { value: "0" }, "0"));
    return { select, element: h("div", { class: "field narrow" }, h("label", { for: id, words }), select) };
  }

  async #ask() {
    const input = this.input.value;
    if (!input.trim()) return this.input.focus();
    this.#stopper?.abort();
    const { signal } = (this.#stopper = new AbortController());
    if (!this.#found) refill(this.#place, waiting()); // otherwise the old picture stays until the new one is there
    this.#place.setAttribute("aria-busy", "true");
    const [layer, head] = [this.layer, this.head].map(({ select }) => Number(select.value));
    try {
      const found = await post("/v1/attention", { model: chosenModel(), input, layer, head }, signal);
      if (!signal.aborted) this.#draw(found);
    } catch (error) {
      if (error.name === "AbortError") return;
      this.#found = null;
      refill(this.#place, problem(error, () => this.#ask()));
    }
    this.#place.removeAttribute("aria-busy");
  }

  #draw(found) {
    const row = this.#found?.tokens.length === found.tokens.length ? this.picture.row : found.tokens.length - 1;
    this.#found = found;
    numbers(this.layer.select, found.n_layers);
    numbers(this.head.select, found.n_heads);
    this.reading = h("p", { class: "reading", role: "status" });
    this.strip = h("div", { class: "strip" });
    this.picture = new HeatMap(found.tokens, found.weights, (query, key) => this.#read(query, key));
    refill(
      this.#place,
      this.picture.element,
      h("div", { class: "attention-text" }, this.reading, this.strip, h("p", { class: "quiet", words: "attention.help" })),
    );
    this.picture.select(row, strongest(found.weights[row]));
  }

  /** Say what the chosen cell holds, and tint the text by what the query sees. */
  #read(query, key) {
    const { tokens, weights } = this.#found;
    const values = { query: visible(tokens[query]), key: visible(tokens[key]), share: percent(weights[query][key]) };
    this.reading.textContent = t("attention.reading", values);
    const most = Math.max(...weights[query]);
    const pieces = tokens.map((token, number) => {
      const piece = h("span", { class: number === query ? "query" : number === key ? "key" : null }, token);
      piece.style.setProperty("--share", number <= query ? (weights[query][number] / most).toFixed(3) : 0);
      if (number !== query) piece.addEventListener("click", () => this.picture.select(number, strongest(weights[number])));
      return piece;
    });
    refill(this.strip, pieces);
  }
}

const strongest = (row) => row.indexOf(Math.max(...row));

/** Fill a choice with 0 … count - 1, keeping what is chosen. */
function numbers(select, count) {
  const chosen = Math.min(Number(select.value), count - 1);
  if (select.options.length === count) return;
  refill(select, Array.from({ length: count }, (_, number) => h("option", { value: number, selected: number === chosen }, String(number))));
}
