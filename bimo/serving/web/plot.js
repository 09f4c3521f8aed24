// A curve with axes, a crosshair for the pointer and the arrow keys, and marks for events. Drawn as SVG.

import { h, refill, s } from "./dom.js";
import { locale } from "./language.js";

const HEIGHT = 280;
const MOST_NAMES = 6; // of events; more would hide the curve
const EDGE = { left: 56, right: 14, top: 12, bottom: 30 };

/** Round numbers that divide a range into some five parts. */
export function ticks(low, high, wanted = 5) {
  const rough = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) found.push(Math.abs(value) < step / 1e6 ? 0 : value);
  return found;
}

/** The same for a logarithmic axis: powers of ten, and between few of them their doubles and fives. */
export function logTicks(low, high) {
  const found = [];
  const factors = Math.log10(high / low) > 3 ? [1] : Math.log10(high / low) > 1 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const factor of factors) found.push(factor * 10 ** power);
  }
  return found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
}

const short = (value) =>
  Math.abs(value) >= 1e4 || (value && Math.abs(value) < 1e-3)
    ? new Intl.NumberFormat(locale(), Math.abs(value) >= 1 ? { notation: "compact" } : { notation: "scientific", maximumFractionDigits: 1 }).format(value)
    : String(Number(value.toPrecision(3)));

export class Plot {
  #series = [];
  #marks = [];
  #log = false;
  #at = null;
  #frame = null;

  /** `read(step)` hears which step is looked at; `label` names the plot. */
  constructor({ label, read }) {
    this.read = read;
    this.drawing = s("svg", { class: "plot-drawing", "aria-hidden": "true" });
    const on = {
      pointermove: (event) => this.#point(event),
      pointerdown: (event) => this.#point(event),
      keydown: (event) => this.#key(event),
    };
    this.element = h("div", { class: "plot", role: "application", tabindex: "0", label, on }, this.drawing);
    new ResizeObserver(() => this.draw()).observe(this.element);
    for (const event of ["themechange", "languagechange"]) document.addEventListener(event, () => this.element.isConnected && this.draw());
  }

  /** Show curves: series are {kind, points: [[step, value], …]}; marks {step, name} say when something happened. */
  show(series, marks, log) {
    this.#series = series.map((one) => ({ ...one, points: one.points.filter(([, y]) => Number.isFinite(y) && (!log || y > 0)) }));
    this.#marks = marks;
    this.#log = log;
    this.#steps = [...new Set(this.#series.flatMap(({ points }) => points.map(([x]) => x)))].sort((a, b) => a - b);
    this.draw();
  }

  #steps = [];

  /** Look at a step. */
  look(step) {
    this.#at = step;
    this.draw();
    this.read(step);
  }

  #point(event) {
    if (!this.#frame || !this.#steps.length) return;
    const box = this.drawing.getBoundingClientRect();
    const x = this.#frame.step(event.clientX - box.left);
    this.look(this.#steps.reduce((best, step) => (Math.abs(step - x) < Math.abs(best - x) ? step : best)));
  }

  #key(event) {
    const by = { ArrowRight: 1, ArrowLeft: -1, PageUp: 10, PageDown: -10, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined || !this.#steps.length) return;
    event.preventDefault();
    const at = this.#at === null ? (by > 0 ? -1 : this.#steps.length) : this.#steps.findIndex((step) => step >= this.#at);
    this.look(this.#steps[Math.max(0, Math.min(this.#steps.length - 1, at + by))]);
  }

  draw() {
    const width = this.element.clientWidth;
    if (!width) return;
    this.drawing.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.drawing.setAttribute("height", HEIGHT);
    this.#frame = this.#framed(width);
    if (!this.#frame) return refill(this.drawing);
    const { x, y } = this.#frame;
    refill(this.drawing, this.#axes(width), this.#events(), this.#series.map((one) => curve(one, x, y)), this.#crosshair());
  }

  /** Where values lie on the drawing. */
  #framed(width) {
    const points = this.#series.flatMap((one) => one.points);
    if (!points.length) return null;
    const [xs, ys] = [points.map(([x]) => x), points.map(([, y]) => y)];
    const last = xs.reduce((a, b) => Math.max(a, b));
    let [low, high] = ys.reduce(([a, b], y) => [Math.min(a, y), Math.max(b, y)], [Infinity, -Infinity]);
    if (low === high) [low, high] = this.#log ? [low / 2, high * 2] : [low - 0.5 * Math.abs(low || 1), high + 0.5 * Math.abs(high || 1)];
    const margin = this.#log ? 0 : 0.04 * (high - low);
    const bottom = this.#log ? low : Math.max(low - margin, low >= 0 ? 0 : -Infinity);
    const scale = this.#log ? Math.log : (value) => value;
    const inner = { width: width - EDGE.left - EDGE.right, height: HEIGHT - EDGE.top - EDGE.bottom };
    return {
      x: (step) => EDGE.left + (step / (last || 1)) * inner.width,
      y: (value) => EDGE.top + inner.height * (1 - (scale(value) - scale(bottom)) / (scale(high + margin) - scale(bottom))),
      step: (pixels) => ((pixels - EDGE.left) / inner.width) * last,
      yTicks: this.#log ? logTicks(low, high) : ticks(bottom, high + margin),
      xTicks: ticks(0, last, Math.max(2, Math.floor(width / 110))).filter(Number.isInteger),
    };
  }

  #axes(width) {
    const { x, y, xTicks, yTicks } = this.#frame;
    const floor = HEIGHT - EDGE.bottom;
    const across = yTicks.map((value) => [
      s("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: y(value), y2: y(value) }),
      s("text", { x: EDGE.left - 8, y: y(value), "text-anchor": "end", "dominant-baseline": "middle" }, short(value)),
    ]);
    const along = xTicks.map((step) => s("text", { x: x(step), y: floor + 20, "text-anchor": "middle" }, short(step)));
    return s("g", { class: "axes" }, across.flat(), along, s("line", { class: "floor", x1: EDGE.left, x2: width - EDGE.right, y1: floor, y2: floor }));
  }

  #events() {
    const { x } = this.#frame;
    const floor = HEIGHT - EDGE.bottom;
    const named = this.#marks.length <= MOST_NAMES;
    const mark = ({ step, name }) => [
      s("line", { class: "event-line", x1: x(step), x2: x(step), y1: EDGE.top, y2: floor }),
      s("path", { class: "event-mark", d: `M${x(step)},${floor - 5}l4,5l-4,5l-4,-5z` }),
      named ? s("text", { x: x(step) - 5, y: EDGE.top + 8, "text-anchor": "end" }, name) : null,
    ];
    return s("g", { class: "events" }, this.#marks.map(mark).flat());
  }

  #crosshair() {
    if (this.#at === null) return null;
    const { x, y } = this.#frame;
    const dots = this.#series.flatMap(({ kind, points }) =>
      points.filter(([step]) => step === this.#at).map(([step, value]) => s("circle", { class: `dot ${kind}`, cx: x(step), cy: y(value), r: 4 })),
    );
    return s("g", {}, s("line", { class: "crosshair", x1: x(this.#at), x2: x(this.#at), y1: EDGE.top, y2: HEIGHT - EDGE.bottom }), dots);
  }
}

function curve({ kind, points, dots }, x, y) {
  const path = points.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join("L");
  const line = points.length > 1 ? s("path", { class: `curve ${kind}`, d: `M${path}` }) : null;
  const all = dots || points.length === 1 ? points.map(([step, value]) => s("circle", { class: `point ${kind}`, cx: x(step), cy: y(value), r: 2.5 })) : [];
  return s("g", {}, line, all);
}
