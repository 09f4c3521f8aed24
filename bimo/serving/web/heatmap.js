// A picture of a T x T matrix of shares: rows are the tokens that look, columns those they look at.

import { h, newId } from "./dom.js";
import { visible } from "./tokens.js";

const LARGEST_CELL = 30;
const SMALLEST_NAMED = 12; // pixels; names of rows and columns need as much
const NAME = 76; // pixels for the names

export class HeatMap {
  #tokens;
  #weights;
  #told;
  #canvas = h("canvas", {});
  #cell = 0;
  #edge = 0;
  row = 0;
  column = 0;

  /** `told(row, column)` hears which cell is chosen, by pointer or by arrow keys. */
  constructor(tokens, weights, told) {
    this.#tokens = tokens;
    this.#weights = weights;
    this.#told = told;
    const help = newId("help");
    const on = {
      keydown: (event) => this.#key(event),
      pointermove: (event) => this.#point(event),
      pointerdown: (event) => this.#point(event),
    };
    // An application: the arrow keys are the picture's, also where a screen reader would take them.
    this.element = h(
      "div",
      { class: "heatmap", role: "application", tabindex: "0", label: "attention.picture", "aria-describedby": help, on },
      this.#canvas,
      h("p", { class: "unseen", id: help, words: "attention.keys" }),
    );
    new ResizeObserver(() => this.draw()).observe(this.element);
    for (const event of ["themechange", "languagechange"]) document.addEventListener(event, () => this.element.isConnected && this.draw());
  }

  select(row, column) {
    this.row = row;
    this.column = Math.min(column, row); // nobody sees what comes later
    this.draw();
    this.#told(this.row, this.column);
  }

  #key(event) {
    const [down, right] = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[event.key] ?? [0, 0];
    if (!down && !right) return;
    event.preventDefault();
    const last = this.#tokens.length - 1;
    const row = Math.max(0, Math.min(last, this.row + down));
    this.select(row, Math.max(0, Math.min(row, this.column + right)));
  }

  #point(event) {
    const box = this.#canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left - this.#edge) / this.#cell);
    const row = Math.floor((event.clientY - box.top - this.#edge) / this.#cell);
    if (row < 0 || row >= this.#tokens.length || column > row || column < 0) return;
    if (row !== this.row || column !== this.column) this.select(row, column);
  }

  draw() {
    const T = this.#tokens.length;
    const width = this.element.clientWidth;
    if (!width) return;
    const named = (width - NAME) / T >= SMALLEST_NAMED;
    this.#edge = named ? NAME : 0;
    this.#cell = Math.min(LARGEST_CELL, (width - this.#edge - 2) / T);
    const side = this.#edge + T * this.#cell + 2;
    const pen = this.#sized(side);
    const colours = coloursOf(this.element);
    pen.clearRect(0, 0, side, side);
    this.#cells(pen, colours);
    if (named) this.#names(pen, colours);
    pen.strokeStyle = colours.ink;
    pen.lineWidth = 2;
    pen.strokeRect(this.#edge + this.column * this.#cell, this.#edge + this.row * this.#cell, this.#cell, this.#cell);
  }

  /** The canvas at the screen's resolution, and something to draw on it in CSS pixels. */
  #sized(side) {
    const scale = devicePixelRatio || 1;
    this.#canvas.width = this.#canvas.height = Math.round(side * scale);
    this.#canvas.style.inlineSize = this.#canvas.style.blockSize = `${side}px`;
    const pen = this.#canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    return pen;
  }

  #cells(pen, colours) {
    const gap = this.#cell > 8 ? 1 : 0;
    this.#weights.forEach((shares, row) => {
      for (let column = 0; column <= row; column += 1) {
        const place = [this.#edge + column * this.#cell, this.#edge + row * this.#cell, this.#cell - gap, this.#cell - gap];
        pen.globalAlpha = 1;
        pen.fillStyle = colours.faint;
        pen.fillRect(...place);
        pen.globalAlpha = Math.sqrt(shares[column]); // small shares are many and should be seen
        pen.fillStyle = colours.accent;
        pen.fillRect(...place);
      }
    });
    pen.globalAlpha = 1;
  }

  #names(pen, colours) {
    pen.font = `${Math.min(13, this.#cell)}px ${colours.font}`;
    pen.textBaseline = "middle";
    this.#tokens.forEach((token, number) => {
      const name = short(visible(token));
      const middle = this.#edge + (number + 0.5) * this.#cell;
      pen.fillStyle = number === this.row ? colours.ink : colours.quiet;
      pen.textAlign = "right";
      pen.fillText(name, this.#edge - 6, middle);
      pen.fillStyle = number === this.column ? colours.ink : colours.quiet;
      pen.save();
      pen.translate(middle, this.#edge - 6);
      pen.rotate(-Math.PI / 2);
      pen.textAlign = "left";
      pen.fillText(name, 0, 0);
      pen.restore();
    });
  }
}

const short = (name) => (Array.from(name).length > 9 ? `${Array.from(name).slice(0, 8).join("")}…` : name);

/** The theme's colours as a canvas needs them: computed, without variables. */
function coloursOf(element) {
  const of = (name) => {
    const probe = h("span", { class: `colour-${name}` });
    element.append(probe);
    const { color } = getComputedStyle(probe);
    probe.remove();
    return color;
  };
  return { ink: of("ink"), quiet: of("quiet"), faint: of("faint"), accent: of("accent"), font: getComputedStyle(element).fontFamily };
}
