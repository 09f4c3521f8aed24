// One turn of a conversation as it stands on the page.

import { h, put, refill } from "./dom.js";
import { problem } from "./states.js";
import { TokenLine } from "./tokens.js";
import { verdictList } from "./verdicts.js";

const ENDS = { length: "chat.length", stopped: "chat.stopped", content_filter: "chat.filtered" };

/**
 * A turn, and a way to add to it while it is written.
 * `actions` are functions: copy, and edit (of a question) or again (of an answer), where there is one.
 */
export class TurnView {
  #turn;
  #actions;
  #body = h("div", { class: "turn-body" });
  #foot = h("div", { class: "turn-foot" });
  #line = null;

  constructor(turn, actions) {
    this.#turn = turn;
    this.#actions = actions;
    const mine = turn.role === "user";
    this.who = h("p", { class: "who" }, mine ? h("span", { words: "chat.you" }) : null);
    this.element = h("li", { class: `turn ${mine ? "question" : "answer"}` }, this.who, this.#body, this.#foot);
    this.name();
  }

  /** Say which model answers, and why this one when nobody chose it. */
  name() {
    const { role, model, reason } = this.#turn;
    if (role !== "user") refill(this.who, h("span", { class: "mono" }, model), reason ? ` · ${reason}` : null);
  }

  /** Draw the finished turn; with its probabilities if they are wanted and known. */
  draw(withTokens) {
    const { content, tokens, error } = this.#turn;
    this.element.removeAttribute("data-writing");
    this.#line = withTokens && tokens?.length ? new TokenLine() : null;
    // What the guard has changed is shown as it was changed: the model's own tokens must not tell what was masked.
    const honest = this.#line?.write(tokens, content);
    if (content) refill(this.#body, honest ? this.#line.element : plain(content));
    else this.#body.replaceChildren();
    if (this.#line && !honest && content) put(this.#body, h("p", { class: "quiet", words: "tokens.changed" }));
    if (error) put(this.#body, problem(error, this.#actions.again));
    this.#drawFoot();
  }

  /** Begin to write. */
  start(withTokens) {
    this.element.dataset.writing = "";
    this.#line = withTokens ? new TokenLine() : null;
    this.#foot.replaceChildren();
    refill(this.#body, this.#line ? this.#line.element : h("p", { class: "text" }));
  }

  /** Add what has come: text, and its tokens when they were asked for. */
  push(text, tokens) {
    if (this.#line && tokens) this.#line.push(tokens);
    else if (!this.#line) put(this.#body.firstChild, text);
  }

  /** The last turn alone can be edited or asked again. */
  setLast(isLast) {
    this.element.classList.toggle("last", isLast);
  }

  #drawFoot() {
    const { finish, verdicts } = this.#turn;
    const { copy, edit, again } = this.#actions;
    refill(
      this.#foot,
      ENDS[finish] ? h("p", { class: "quiet", words: ENDS[finish] }) : null,
      verdictList(verdicts),
      h(
        "div",
        { class: "actions" },
        copy && this.#turn.content ? button("action.copy", copy) : null,
        edit ? button("action.edit", edit, "only-last") : null,
        again && !this.#turn.error ? button("action.again", again, "only-last") : null,
      ),
    );
  }
}

const button = (words, click, kind = "") => h("button", { type: "button", class: `plain ${kind}`, words, on: { click } });

/** Text with its line breaks; what stands between ``` fences is set as code. Nothing else is interpreted. */
export function plain(text) {
  const parts = text.split(/^```[^\n]*\n?/m);
  return parts.map((part, number) => {
    if (number % 2) return h("pre", { class: "code", tabindex: "0" }, h("code", {}, part.replace(/\n$/, "")));
    return part.trim() ? h("p", { class: "text" }, number ? part.replace(/^\n+/, "") : part) : null;
  });
}
