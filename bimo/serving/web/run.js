// One run: curves with events marked on them, what it wrote, and what happened.

import { get } from "./api.js";
import { h, newId, refill, s } from "./dom.js";
import { amount, t } from "./language.js";
import { Plot } from "./plot.js";
import { nothing, problem, waiting } from "./states.js";

const EVERY_MS = 5000;
const isTraining = (line) => "learning_rate" in line;

// The curves, by what can be chosen. A line of an evaluation has no learning rate.
const CURVES = {
  loss: [
    { kind: "train", words: "runs.train_loss", of: (line) => (isTraining(line) ? line.loss : undefined) },
    { kind: "valid", words: "runs.valid_loss", dots: true, of: (line) => (isTraining(line) ? undefined : (line.valid_loss ?? line.loss)) },
  ],
  bits: [{ kind: "valid", words: "runs.bits", dots: true, of: (line) => line.bits_per_byte }],
  rate: [{ kind: "train", words: "runs.rate", of: (line) => line.learning_rate }],
  gradient: [{ kind: "train", words: "runs.gradient", of: (line) => line.gradient_norm }],
  speed: [{ kind: "train", words: "runs.speed", of: (line) => line.tokens_per_second }],
};

export class RunView {
  #timer = 0;
  #lines = [];
  #events = [];
  #drawn = "";

  constructor(name) {
    this.name = name;
    this.element = h("div", {}, waiting());
  }

  start() {
    this.#load();
  }

  stop() {
    clearTimeout(this.#timer);
    this.#timer = null;
  }

  async #load() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    try {
      const path = `/v1/runs/${encodeURIComponent(this.name)}`;
      const [run, events] = await Promise.all([get(path), get(`${path}/events`)]);
      if (this.#timer === null) return; // left meanwhile
      const seen = JSON.stringify([run.metrics.length, run.metrics.at(-1), run.samples.length, events.length]);
      if (seen !== this.#drawn) this.#draw(run, events); // what has not changed is not disturbed
      this.#drawn = seen;
    } catch (error) {
      this.#drawn = "";
      refill(this.element, problem(error, () => this.#load()));
      return;
    }
    this.#timer = setTimeout(() => (document.hidden ? (this.#timer = setTimeout(() => this.#load(), EVERY_MS)) : this.#load()), EVERY_MS);
  }

  #draw(run, events) {
    this.#lines = run.metrics;
    this.#events = events;
    if (!this.plot) this.#build();
    this.#curves();
    refill(
      this.rest,
      run.damaged ? h("p", { class: "quiet", words: "runs.damaged", values: { count: run.damaged } }) : null,
      samples(run.samples),
      this.#eventList(),
    );
    if (!this.frame.isConnected) refill(this.element, this.frame);
  }

  #build() {
    const id = newId("curve");
    this.chosen = h("select", { id, on: { change: () => this.#curves() } });
    this.log = h("button", { type: "button", "aria-pressed": "false", words: "runs.log", on: { click: () => this.#toggle() } });
    this.reading = h("p", { class: "reading", role: "status" });
    this.key = h("ul", { class: "curve-key" });
    this.plot = new Plot({ label: "runs.plot", read: (step) => this.#read(step) });
    this.rest = h("div", { class: "run-rest" });
    this.frame = h(
      "div",
      {},
      h("h2", { class: "run-title" }, this.name),
      h("div", { class: "row" }, h("div", { class: "field" }, h("label", { for: id, words: "runs.curve" }), this.chosen), this.log, this.key),
      this.plot.element,
      this.reading,
      this.rest,
    );
  }

  #toggle() {
    this.log.setAttribute("aria-pressed", String(this.log.getAttribute("aria-pressed") !== "true"));
    this.#curves();
  }

  #curves() {
    const there = Object.keys(CURVES).filter((name) => CURVES[name].some(({ of }) => this.#lines.some((line) => typeof of(line) === "number")));
    const name = there.includes(this.chosen.value) ? this.chosen.value : (there[0] ?? "loss");
    refill(this.chosen, there.map((one) => h("option", { value: one, words: `curve.${one}`, selected: one === name })));
    const points = ({ of }) => this.#lines.map((line) => [line.step, of(line)]).filter(([x, y]) => Number.isFinite(x) && typeof y === "number");
    this.series = CURVES[name].map((curve) => ({ ...curve, points: points(curve) })).filter((one) => one.points.length);
    refill(this.key, this.series.map(({ kind, words }) => h("li", {}, sample(kind), h("span", { words }))));
    const marks = new Map(this.#events.filter(({ step }) => step > 0).map(({ step, event }) => [step, { step, name: String(event) }]));
    this.plot.show(this.series, [...marks.values()], this.log.getAttribute("aria-pressed") === "true");
    this.reading.textContent = this.series.length ? t("runs.hover") : t("runs.empty");
  }

  #read(step) {
    const values = this.series.flatMap(({ words, points }) => {
      const point = points.find(([x]) => x === step);
      return point ? [`${t(words)} ${Number(point[1].toPrecision(5))}`] : [];
    });
    const happened = this.#events.filter((event) => event.step === step).map((event) => event.event);
    this.reading.textContent = [t("runs.step", { step: amount(step) }), ...values, ...happened].join(" · ");
  }

  #eventList() {
    const item = (event) => {
      const { event: kind, step, time, what, ...facts } = event;
      const more = Object.entries(facts).map(([name, value]) => `${name} ${fact(value)}`);
      const place = Number.isFinite(step) && step > 0
        ? h("button", { type: "button", class: "plain number", on: { click: () => this.#lookAt(step) } }, amount(step))
        : h("span", { class: "number quiet" }, "–");
      return h("li", {}, place, h("div", {}, h("span", { class: "event-kind" }, String(kind)), h("span", { class: "quiet" }, [what, ...more].filter(Boolean).join(" · ")), h("time", { class: "quiet" }, String(time ?? "").replace("T", " "))));
    };
    const list = this.#events.length ? h("ol", { class: "event-list" }, [...this.#events].reverse().map(item)) : nothing("runs.no_events");
    return h("section", {}, h("h3", { words: "runs.events" }), list);
  }

  /** Show on the curve where an event happened. */
  #lookAt(step) {
    this.plot.look(step);
    this.plot.element.scrollIntoView({ block: "nearest" });
  }
}

/** A fact of an event as a person reads it. */
function fact(value) {
  if (typeof value === "number") return String(Number(value.toPrecision(4)));
  if (value === null || typeof value !== "object") return String(value);
  return Object.entries(value).map(([name, own]) => (Array.isArray(value) ? fact(own) : `${name} ${fact(own)}`)).join(", ");
}

const sample = (kind) => s("svg", { class: "key-line", viewBox: "0 0 24 8", "aria-hidden": "true" }, s("path", { class: `curve ${kind}`, d: "M0,4H24" }));

function samples(list) {
  const item = ({ step, prompt, text }) =>
    h("li", {}, h("span", { class: "number quiet" }, amount(step)), h("p", { class: "text" }, h("span", { class: "prompt" }, String(prompt ?? "")), String(text ?? "")));
  return h("section", {}, h("h3", { words: "runs.samples" }), list.length ? h("ol", { class: "sample-list" }, [...list].reverse().map(item)) : nothing("runs.no_samples"));
}
