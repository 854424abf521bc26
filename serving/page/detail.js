/** The detail view of a result: large picture, why it is here, and a search with it. */

import { byId, describe } from "./dom.js";
import { show, sourceOf } from "./pictures.js";
import { stack } from "./results.js";
import { capital, count, figure, nameOf, share } from "./words.js";

const SMALL = 200;

export class Detail {
  #dialog = byId("detail");
  #picture = byId("detail-picture");
  #answer;
  #place;
  #how;
  #like;
  #closed;

  /**
   * @param {(result: object) => void} like search with a result's picture
   * @param {(place: number) => void} closed called with the place last looked at
   */
  constructor(like, closed) {
    this.#like = like;
    this.#closed = closed;
    byId("detail-close").addEventListener("click", () => this.#dialog.close());
    byId("detail-previous").addEventListener("click", () => this.#turn(-1));
    byId("detail-next").addEventListener("click", () => this.#turn(1));
    byId("detail-search").addEventListener("click", () => {
      const result = this.#answer.results[this.#place];
      this.#dialog.close();
      this.#like(result);
    });
    this.#dialog.addEventListener("click", (event) => event.target === this.#dialog && this.#dialog.close());
    this.#dialog.addEventListener("close", () => this.#closed(this.#place));
    this.#dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") this.#turn(-1);
      if (event.key === "ArrowRight") this.#turn(1);
    });
    // A picture of few pixels is shown as it is: smoothed this large, it would be a blur.
    this.#picture.addEventListener("load", () => {
      const side = Math.max(this.#picture.naturalWidth, this.#picture.naturalHeight);
      this.#picture.classList.toggle("small", side < SMALL);
    });
  }

  /** Open the result at a place of an answer; `how` names the score's parts and has the places to compare with. */
  open(answer, place, how) {
    this.#answer = answer;
    this.#place = place;
    this.#how = how;
    const result = answer.results[place];
    this.#picture.alt = nameOf(result);
    show(this.#picture, result.url);
    byId("detail-rank").textContent = `Result ${count(place + 1)} of ${count(answer.results.length)}`;
    byId("detail-name").textContent = nameOf(result);
    byId("detail-path").textContent = result.path;
    stack(byId("detail-bar"), result, Math.max(1e-9, result.text_part, 0) + Math.max(0, result.visual_part));
    const pairs = [
      [capital(how.parts[0]), product(result.text_part, 1 - answer.weight)],
      [capital(how.parts[1]), product(result.visual_part, answer.weight)],
      ["Score", figure(result.score)],
    ];
    const before = how.before?.get(result.id);
    if (how.before) {
      pairs.push(["By words alone", before === undefined ? `below place ${how.before.size}` : `place ${before + 1}`]);
    }
    describe(byId("detail-parts"), pairs);
    // Not `disabled`, which would take the focus away from the one who turns to the end.
    byId("detail-previous").setAttribute("aria-disabled", place === 0);
    byId("detail-next").setAttribute("aria-disabled", place === answer.results.length - 1);
    const link = byId("detail-open");
    link.removeAttribute("href");
    sourceOf(result.url).then((source) => (link.href = source), () => {});
    if (!this.#dialog.open) this.#dialog.showModal();
  }

  #turn(step) {
    const place = this.#place + step;
    if (this.#answer.results[place]) this.open(this.#answer, place, this.#how);
  }
}

/** A part of a score as what it is: the part's weight times its likeness. */
const product = (part, weight) =>
  weight ? `${figure(part)} = ${share(weight)} × ${figure(part / weight, 2)}` : figure(part);
