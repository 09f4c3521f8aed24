// The models that the server offers, and the one that is asked.

import { get } from "./api.js";
import { h, newId, refill } from "./dom.js";

const state = { list: [], chosen: "" };

/** What goes into a request: the model's name; "" leaves the choice to the server. */
export const chosenModel = () => state.chosen;

/** Whether the model was made for conversations. One that was not continues texts. */
export const knowsChat = () => (state.list.find((model) => model.id === state.chosen) ?? state.list[0])?.bimo?.chat !== false;

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
    const one = state.list.length === 1;
    select.disabled = one;
    refill(select, one ? null : h("option", { value: "", words: "model.any" }), state.list.map(option));
    choose(one ? state.list[0].id : "");
  };
  document.addEventListener("reachable", () => state.list.length || load());
  load();
  return h("div", { class: "model-field" }, h("label", { for: id, words: "model.label" }), select);
}

function option({ id, bimo }) {
  const tasks = bimo?.tasks?.length ? ` · ${bimo.tasks.join(", ")}` : "";
  return h("option", { value: id }, id + tasks);
}

function choose(name) {
  state.chosen = name;
  document.dispatchEvent(new Event("modelchange"));
}
