/** The detail view of a result: large picture, why it is here, and a search with it. */

import { byHalves, colour, fill, lengthOf } from "./bars.js";
import { byId, describe } from "./dom.js";
import { show, sourceOf } from "./pictures.js";
import { capital, count, figure, nameOf, share } from "./words.js";

const SMALL = 200;

export class Detail {
  #dialog = byId("detail");
  #picture = byId("detail-picture");
  #answer;
  #place;
  #how;
  #hands;

  /**
   * @param {{like: (result: object) => void, judge: (result: object, wanted: boolean) => void,
   *   closed: (place: number) => void}} hands `like` searches with a result's picture alone; `judge` takes it into the
   *   search; `closed` is called with the place last looked at
   */
  constructor(hands) {
    this.#hands = hands;
    byId("detail-close").addEventListener("click", () => this.#dialog.close());
    byId("detail-previous").addEventListener("click", () => this.#turn(-1));
    byId("detail-next").addEventListener("click", () => this.#turn(1));
    const take = (id, hand) =>
      byId(id).addEventListener("click", () => {
        const result = this.#answer.results[this.#place];
        this.#dialog.close();
        hand(result);
      });
    take("detail-search", (result) => this.#hands.like(result));
    take("detail-more", (result) => this.#hands.judge(result, true));
    take("detail-less", (result) => this.#hands.judge(result, false));
    this.#dialog.addEventListener("click", (event) => event.target === this.#dialog && this.#dialog.close());
    this.#dialog.addEventListener("close", () => this.#hands.closed(this.#place));
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
    const halves = byHalves(result);
    fill(byId("detail-bar"), halves, Math.max(1e-9, lengthOf(halves)));
    const pairs = [
      [capital(how.parts[0]), product(result.text_part, 1 - answer.weight)],
      [capital(how.parts[1]), product(result.visual_part, answer.weight)],
      ["Score", figure(result.score)],
    ];
    if (typeof result.rerank_score === "number") pairs.push(["Second look", figure(result.rerank_score)]);
    const before = how.before?.get(result.id);
    if (how.before) {
      pairs.push(["By words alone", before === undefined ? `below place ${how.before.size}` : `place ${before + 1}`]);
    }
    describe(byId("detail-parts"), pairs);
    this.#showShares(result, how.names.all);
    const sign = how.signOf({ kind: "row", value: result.id, box: null });
    byId("detail-more").setAttribute("aria-pressed", sign > 0);
    byId("detail-less").setAttribute("aria-pressed", sign < 0);
    // Not `disabled`, which would take the focus away from the one who turns to the end.
    byId("detail-previous").setAttribute("aria-disabled", place === 0);
    byId("detail-next").setAttribute("aria-disabled", place === answer.results.length - 1);
    const link = byId("detail-open");
    link.removeAttribute("href");
    sourceOf(result.url).then((source) => (link.href = source), () => {});
    if (!this.#dialog.open) this.#dialog.showModal();
  }

  #showShares(result, names) {
    const shares = result.shares?.length > 1 ? result.shares : [];
    byId("detail-evidence").hidden = !shares.length;
    describe(byId("detail-shares"), shares.map((size, i) => [names[i] ?? `piece ${i + 1}`, figure(size)]));
    [...byId("detail-shares").querySelectorAll("dt")].forEach((term, i) => colour(term, i));
  }

  #turn(step) {
    const place = this.#place + step;
    if (this.#answer.results[place]) this.open(this.#answer, place, this.#how);
  }
}

/** A part of a score as what it is: the part's weight times its likeness. */
const product = (part, weight) =>
  weight ? `${figure(part)} = ${share(weight)} × ${figure(part / weight, 2)}` : figure(part);
