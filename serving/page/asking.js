/** The requests that follow from a round, and what is known of the answer to it so far. */

import { empty, isEmpty } from "./address.js";
import * as api from "./api.js";
import { byPictures, imaginations, reading, requestOf } from "./request.js";
import { imaginedAtOnce, mostResults } from "./service.js";
import { sendAgain } from "./uploads.js";

const STEP = 24;

export class Asking {
  round = empty();
  k = STEP;
  answer = null;
  /** The round that the answer is to. */
  answered = null;
  /** The imagined images of the round's words, or of those that its pictures were read as. */
  imagined = [];
  /** Places in the ranking by words alone, to tell what has moved; null where pictures count too. */
  before = null;
  /** Texts whose images the service remembers now, with their seeds. */
  #remembered = new Set();
  /** Uploads that were sent again since the last answer. */
  #sentTwice = new Set();
  #running = null;
  #outdated = false; // whether the round changed while an answer was on its way
  #timer = 0;
  #hands;

  /**
   * @param {object} hands called as an answer comes about: `begins`; `searches`, with how many images are awaited;
   *   `imagines`, once there are some; `arrives`, with an answer and whether it is the `last`; `fails`, with an error;
   *   `ends`; and `forgets`, when the imagined images are those of another round
   */
  constructor(hands) {
    this.#hands = hands;
  }

  /** The request for an answer to the round. */
  get request() {
    return requestOf(this.round, this.k, this.imagined);
  }

  /** Turn to another round: what is known of the one before stays as far as it holds. Then `ask`. */
  turn(round) {
    const before = this.round;
    this.round = round;
    const sameWords = before.text === round.text;
    const sameEvidence = sameWords && JSON.stringify(before.pieces) === JSON.stringify(round.pieces);
    if (!sameEvidence || isEmpty(round)) this.k = STEP;
    const sameReading = round.text || reading(before) === reading(round);
    if (!sameWords || !sameReading || before.seed !== round.seed) {
      this.imagined = [];
      this.#hands.forgets();
    }
    if (!sameWords) this.answer = null;
    if (!sameEvidence) this.before = null;
    // While images are being made there is nothing to rank anew: giving up would only make them again.
    const making = sameEvidence && before.seed === round.seed && round.text && !this.imagined.length;
    this.#outdated = Boolean(this.#running && making);
  }

  /** Ask for an answer to the round, at once or after a pause in milliseconds. */
  ask(pause = 0) {
    if (this.#outdated) return;
    clearTimeout(this.#timer);
    if (pause) this.#timer = setTimeout(() => this.#run(), pause);
    else this.#run();
  }

  /** Ask for the same again. */
  again() {
    this.#run();
  }

  /** Ask for more results. */
  more() {
    this.k = Math.min(this.k + STEP, mostResults());
    this.#run();
  }

  /** Give up: there is nothing to ask for. */
  stop() {
    this.#halt();
    this.#hands.ends();
    [this.answer, this.before] = [null, null];
  }

  #halt() {
    clearTimeout(this.#timer);
    this.#running?.abort();
    this.#running = null;
  }

  /** An earlier request that is still running is given up. */
  async #run() {
    this.#halt();
    const mine = (this.#running = new AbortController());
    const { round } = this; // it may change before the answer comes
    this.#outdated = false;
    this.#hands.begins();
    try {
      const known = imaginations(round).every((one) => this.#remembered.has(one));
      const atOnce = known && (!round.text || this.imagined.length);
      if (atOnce) this.#arrive(await api.search(this.request, mine.signal), round, true);
      else await this.#runInStages(round, mine.signal);
    } catch (error) {
      if (this.#running === mine && !(await this.#sentAgain(error, mine))) this.#hands.fails(error);
    } finally {
      if (this.#running === mine) {
        this.#running = null;
        this.#hands.ends();
        if (this.#outdated) this.#run();
      }
    }
  }

  async #runInStages(round, signal) {
    const asked = imaginations(round);
    this.#hands.searches(round.text && round.weight !== 0 && !this.imagined.length ? imaginedAtOnce() : 0);
    let complete = false;
    for await (const [name, data] of api.stream(this.request, signal)) {
      if (name === "text") {
        this.before = byPictures(round) ? null : placesOf(data);
        this.#arrive(data, round, false);
      } else if (name === "imagined") {
        this.imagined = data.imagined;
        this.#hands.imagines();
      } else if (name === "fused") {
        if (!data.degraded) for (const one of asked) this.#remembered.add(one);
        this.#arrive(data, round, true);
        complete = true;
      }
    }
    if (!complete && this.answer) this.#arrive(this.answer, round, true); // what is ranked by words alone has no second stage
  }

  #arrive(answer, round, last) {
    [this.answer, this.answered] = [answer, round];
    this.#sentTwice.clear();
    if (answer.imagined.length) this.imagined = answer.imagined;
    this.#hands.arrives(answer, last);
  }

  /** Whether a picture that the service has lost could be sent again, and the search with it. */
  async #sentAgain(error, mine) {
    const lost = this.round.pieces[error.piece];
    if (lost?.kind !== "upload" || this.#sentTwice.has(lost.value)) return false;
    this.#sentTwice.add(lost.value);
    try {
      if (!(await sendAgain(lost.value))) return false;
    } catch {
      return false;
    }
    if (this.#running === mine) this.#outdated = true;
    return true;
  }
}

const placesOf = (ranking) => new Map(ranking.results.map((result, place) => [result.id, place]));
