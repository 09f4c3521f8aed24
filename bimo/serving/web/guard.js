// The guard: what its rules find in a text, with the places marked.

import { post } from "./api.js";
import { h, newId, refill } from "./dom.js";
import { nothing, problem, waiting } from "./states.js";
import { marked, verdictList } from "./verdicts.js";

export class GuardView {
  #place = h("div", { class: "result" }, nothing("guard.empty"));

  constructor() {
    const id = newId("text");
    this.input = h("textarea", { id, rows: "10", maxlength: "100000", hint: "guard.hint" });
    this.input.addEventListener("keydown", (event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && this.#ask());
    const submit = (event) => (event.preventDefault(), this.#ask());
    this.element = h(
      "div",
      { class: "beside" },
      h(
        "form",
        { class: "side", on: { submit } },
        h("label", { for: id, class: "side-title", words: "apply.text" }),
        this.input,
        h("div", { class: "row" }, h("span", { class: "push" }, h("button", { type: "submit", class: "primary", words: "guard.go" }))),
      ),
      h("section", { class: "side", label: "apply.result" }, h("h2", { class: "side-title", words: "guard.verdicts" }), this.#place),
    );
  }

  async #ask() {
    const input = this.input.value;
    if (!input.trim()) return this.input.focus();
    refill(this.#place, waiting());
    try {
      const found = await post("/v1/moderations", { input });
      this.#draw(input, found.results[0]);
    } catch (error) {
      refill(this.#place, problem(error, () => this.#ask()));
    }
  }

  #draw(text, result) {
    const verdicts = result.verdicts ?? [];
    const head = h("p", { class: "verdict-label", role: "status", words: verdicts.length ? "guard.found" : "guard.clean", values: { count: verdicts.length } });
    refill(this.#place, head, verdictList(verdicts), verdicts.length ? marked(text, verdicts) : null);
  }
}
