// The models that the server offers, and the one that is asked.

import { get } from "./api.js";
import { h, newId, refill } from "./dom.js";

const state = { list: [], chosen: "" };

/** What goes into a request: the model's name. */
export const chosenModel = () => state.chosen;
export const modelNames = () => state.list.map((model) => model.id);

/** A field to choose the model; it asks the server for the names, and again when a view finds it reachable again. */
export function modelField() {
  const id = newId("model");
  const select = h("select", { id, disabled: true, on: { change: () => choose(select.value) } });
  let asking = false;
  const load = async () => {
    if (asking) return;
    asking = true;
    try {
      state.list = (await get("/v1/models")).data;
    } catch {
      return; // the view that is open shows what is wrong, and how to try again
    } finally {
      asking = false;
    }
    if (!modelNames().includes(state.chosen)) choose(modelNames()[0] ?? "");
    select.disabled = state.list.length < 2;
    refill(select, state.list.map((model) => h("option", { value: model.id, selected: model.id === state.chosen }, model.id)));
  };
  document.addEventListener("reachable", () => state.list.length || load());
  load();
  return h("div", { class: "model-field" }, h("label", { for: id, words: "model.label" }), select);
}

function choose(name) {
  state.chosen = name;
  document.dispatchEvent(new Event("modelchange"));
}
