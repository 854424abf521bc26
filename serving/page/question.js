/** The assistant's question, where the service has one: asked for by a button, answered by one of its words. */

import { Fault } from "./api.js";
import { byId, make } from "./dom.js";
import { explain, sentence } from "./words.js";

export class Question {
  #box = byId("question");
  #running = null;
  #hands;

  /**
   * @param {{ask: (signal: AbortSignal, busy: () => void) => Promise<object>, choose: (word: string) => void}} hands
   *   `ask` gets a question about the round that is shown, and calls `busy` where it has to wait for its turn; `choose`
   *   is called with the word that answers it
   */
  constructor(hands) {
    this.#hands = hands;
    byId("ask").addEventListener("click", () => this.#ask());
    this.#box.addEventListener("keydown", ({ key }) => key === "Escape" && this.dismiss());
  }

  /** Whether a question can be asked for. */
  offer(on) {
    this.#box.hidden = !on;
  }

  /** Give up the question, be it asked or on its way. */
  dismiss() {
    this.#running?.abort();
    this.#running = null;
    this.#show("");
  }

  async #ask() {
    const mine = (this.#running = new AbortController());
    const waits = (text) => this.#running === mine && this.#show(text, [this.#button("Cancel", () => this.dismiss())]);
    waits("The assistant is thinking of a question…");
    let answer;
    try {
      const busy = () => waits("The service is busy: the question waits for its turn…");
      answer = await this.#hands.ask(mine.signal, busy);
    } catch (error) {
      if (this.#running === mine) this.#failed(error);
      return;
    }
    if (this.#running === mine) this.#asked(answer);
  }

  #asked({ question, choices, degraded }) {
    if (degraded) {
      return this.#show(`There is no question just now. ${sentence(degraded)}`, this.#ways(true), { failed: true });
    }
    if (!question) return this.#show("There is nothing to ask about these pictures.", this.#ways(false));
    const words = choices.map((word) => {
      const choice = make("button", { type: "button", class: "choice", title: `Search for ${word} as well` }, word);
      choice.addEventListener("click", () => this.#hands.choose(word));
      return choice;
    });
    this.#show(question, [...words, this.#button("None of these", () => this.dismiss())]);
  }

  #failed(error) {
    if (error.name === "AbortError") return this.dismiss();
    if (!(error instanceof Fault)) console.error(error);
    const { title, text } = explain(error, "The assistant was not asked");
    this.#show(`${title}. ${text}`, this.#ways(error.status !== 422), { failed: true });
  }

  /** What there is to do where there is no question. */
  #ways(again) {
    const close = this.#button("Close", () => this.dismiss());
    return again ? [this.#button("Ask again", () => this.#ask()), close] : [close];
  }

  #button(text, pressed) {
    const button = make("button", { type: "button", class: "link" }, text);
    button.addEventListener("click", pressed);
    return button;
  }

  /** Show a text and what can be done about it; without a text, the button to ask. */
  #show(text, buttons = [], { failed = false } = {}) {
    const held = this.#box.contains(document.activeElement);
    this.#box.classList.toggle("asked", Boolean(text));
    this.#box.classList.toggle("failed", failed);
    byId("ask").hidden = Boolean(text);
    byId("question-text").textContent = text;
    byId("question-choices").replaceChildren(...buttons);
    byId("question-choices").hidden = !buttons.length;
    // The button that was pressed has gone: whoever uses the keyboard goes on from here.
    if (held) (buttons[0] ?? byId("ask")).focus();
  }
}
