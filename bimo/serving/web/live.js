// What the server is doing now: its queue, speed and memory over the last minutes.

import { get } from "./api.js";
import { h, refill, s } from "./dom.js";
import { amount, bytes, percent } from "./language.js";
import { problem, waiting } from "./states.js";

const EVERY_MS = 1000;
const KEPT = 120; // two minutes

const CARDS = [
  { words: "live.queue", value: (stats) => stats.queue, write: (value) => amount(value) },
  { words: "live.running", value: (stats) => stats.running, write: (value) => amount(value) },
  { words: "live.speed", value: (stats) => stats.tokens_per_s, write: (value) => amount(value, value < 100 ? 1 : 0) },
  { words: "live.memory", value: (stats) => stats.memory_bytes, write: bytes },
  { words: "live.cache", value: (stats) => (stats.n_blocks ? 1 - stats.free_blocks / stats.n_blocks : 0), write: percent, top: 1 },
  { words: "live.rejected", value: (stats) => stats.rejected, write: (value) => amount(value) },
];

export class Live {
  #timer = 0;
  #open = false;
  #failing = false;

  constructor() {
    this.cards = CARDS.map((card) => new Card(card));
    this.engines = h("ul", { class: "engines" });
    this.grid = h("div", {}, h("div", { class: "cards" }, this.cards.map((card) => card.element)), h("h2", { words: "live.engines" }), this.engines);
    this.state = h("div", {}, waiting());
    this.grid.hidden = true;
    this.element = h("div", { class: "live" }, this.state, this.grid);
    document.addEventListener("visibilitychange", () => this.#again()); // nobody looks: nobody asks
  }

  shown() {
    this.#open = true;
    this.#again();
  }

  left() {
    this.#open = false;
    clearTimeout(this.#timer);
  }

  #again() {
    clearTimeout(this.#timer);
    if (this.#open && !document.hidden) this.#poll();
  }

  async #poll() {
    try {
      const stats = await get("/v1/stats");
      for (const card of this.cards) card.add(stats);
      refill(this.state);
      this.grid.hidden = this.#failing = false;
      refill(this.engines, stats.models.map(engine));
    } catch (error) {
      if (!this.#failing) refill(this.state, problem(error, () => this.#again())); // said once, not each second
      this.#failing = true;
      if (error.kind === "key") return;
    }
    clearTimeout(this.#timer);
    if (this.#open && !document.hidden) this.#timer = setTimeout(() => this.#poll(), this.#failing ? 5 * EVERY_MS : EVERY_MS);
  }
}

const engine = ({ model, state, n_tokens: count, n_restarts: restarts }) =>
  h(
    "li",
    {},
    h("span", { class: "mono" }, model),
    h("span", { class: `state-${state}`, words: `live.${state}` }),
    h("span", { class: "quiet number", words: "live.tokens", values: { count: amount(count) } }),
    restarts ? h("span", { class: "quiet number", words: "live.restarts", values: { count: amount(restarts) } }) : null,
  );

/** A figure and its curve. */
class Card {
  #values = [];

  constructor({ words, value, write, top = 0 }) {
    Object.assign(this, { value, write, top });
    this.figure = h("p", { class: "figure" }, "–");
    this.line = s("path", { class: "spark-line" });
    this.area = s("path", { class: "spark-area" });
    const spark = s("svg", { class: "spark", viewBox: `0 0 ${KEPT} 40`, preserveAspectRatio: "none", "aria-hidden": "true" }, this.area, this.line);
    this.most = h("p", { class: "quiet number" });
    this.element = h("section", { class: "stat" }, h("h2", { words }), this.figure, spark, this.most);
  }

  add(stats) {
    const value = this.value(stats);
    if (typeof value !== "number") return;
    this.#values = [...this.#values, value].slice(-KEPT);
    const most = this.top || Math.max(...this.#values);
    this.figure.textContent = this.write(value);
    refill(this.most, h("span", { words: "live.most", values: { value: this.write(Math.max(...this.#values)) } }));
    const start = KEPT - this.#values.length;
    const points = this.#values.map((one, number) => `${start + number},${(38 - 35 * (most ? one / most : 0)).toFixed(1)}`);
    this.line.setAttribute("d", `M${points.join("L")}`);
    this.area.setAttribute("d", `M${start},40L${points.join("L")}L${KEPT - 1},40Z`);
  }
}
