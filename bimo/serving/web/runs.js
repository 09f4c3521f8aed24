// Runs of training: their list, and of a chosen one its curves, samples and events.

import { get } from "./api.js";
import { h, refill } from "./dom.js";
import { amount, locale } from "./language.js";
import { RunView } from "./run.js";
import { nothing, problem, waiting } from "./states.js";

export class Runs {
  #list = h("nav", { class: "run-list", label: "runs.list" });
  #place = h("div", { class: "run-place" });
  #view = null;
  #name = "";

  constructor() {
    this.element = h("div", { class: "runs" }, this.#list, this.#place);
  }

  /** Show the list, and a run when the address names one. */
  shown(name = "") {
    this.#name = name;
    this.#load();
  }

  left() {
    this.#view?.stop();
  }

  async #load() {
    if (!this.#list.children.length) refill(this.#list, waiting());
    try {
      const runs = await get("/v1/runs");
      this.#draw(runs);
    } catch (error) {
      this.#view?.stop();
      refill(this.#place);
      // No folder was given to the server: that is a choice, and no fault.
      refill(this.#list, error.kind === "missing" ? nothing("runs.off", "runs.how") : problem(error, () => this.#load()));
    }
  }

  #draw(runs) {
    if (!runs.length) {
      refill(this.#place);
      return refill(this.#list, nothing("runs.none", "runs.train"));
    }
    const name = this.#name || runs[0].name;
    const item = (run) =>
      h(
        "li",
        {},
        h(
          "a",
          { href: `#/runs/${encodeURIComponent(run.name)}`, "aria-current": run.name === name ? "true" : null },
          h("span", { class: "run-name" }, run.name),
          h("span", { class: "quiet number" }, figures(run)),
          h("span", { class: "quiet when" }, when(run.modified)),
        ),
      );
    const held = this.#list.contains(document.activeElement);
    refill(this.#list, h("ul", {}, runs.map(item)));
    if (held) this.#list.querySelector("[aria-current]")?.focus(); // drawing the list anew must not lose the keyboard's place
    this.#open(name);
  }

  #open(name) {
    if (this.#view?.name !== name) {
      this.#view?.stop();
      this.#view = new RunView(name);
      refill(this.#place, this.#view.element);
    }
    this.#view.start();
  }
}

/** Where the run stands: words that are there, with points between them. */
function figures({ step, loss, valid_loss: valid }) {
  const found = [h("span", { words: "runs.step", values: { step: amount(step) } })];
  if (typeof loss === "number") found.push(" · ", h("span", { words: "runs.loss", values: { loss: loss.toFixed(3) } }));
  if (typeof valid === "number") found.push(" · ", h("span", { words: "runs.held_out", values: { loss: valid.toFixed(3) } }));
  return found;
}

const when = (seconds) => (seconds ? new Intl.DateTimeFormat(locale(), { dateStyle: "medium", timeStyle: "short" }).format(1000 * seconds) : "");
