// A conversation: its turns, kept in this tab alone until it is closed.

const KEY = "bimo.conversation";

/**
 * Turns of {role, content} and, of an answer, what is known about it: tokens (as OpenAI's logprobs), model, verdicts,
 * finish ("stop", "length", "stopped" by the reader, "error").
 */
export class Conversation {
  turns = read();

  add(turn) {
    this.turns.push(turn);
    return turn;
  }

  /** Drop a turn and all that follow. */
  cut(turn) {
    const at = this.turns.indexOf(turn);
    if (at >= 0) this.turns.length = at;
    this.keep();
  }

  clear() {
    this.turns.length = 0;
    this.keep();
  }

  /** What the model is told. An answer that never came is left out. */
  messages() {
    return this.turns.filter((turn) => turn.content).map(({ role, content }) => ({ role, content }));
  }

  keep() {
    for (const turns of [this.turns, this.turns.map((turn) => ({ ...turn, tokens: undefined }))]) {
      try {
        sessionStorage.setItem(KEY, JSON.stringify(turns));
        return;
      } catch {
        // full: without the probabilities it may fit
      }
    }
  }
}

function read() {
  try {
    const turns = JSON.parse(sessionStorage.getItem(KEY));
    return Array.isArray(turns) ? turns.filter((turn) => typeof turn?.content === "string") : [];
  } catch {
    return [];
  }
}
