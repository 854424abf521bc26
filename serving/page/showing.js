/** What the page shows of a round and of the answer to it. */

import { showAccount } from "./account.js";
import { Box } from "./box.js";
import { Detail } from "./detail.js";
import { byId } from "./dom.js";
import { Evidence } from "./evidence.js";
import { Mind, partsOf } from "./mind.js";
import { headline, namesOf } from "./naming.js";
import { clearNotices, notice } from "./notices.js";
import { Options } from "./options.js";
import { byPictures, imaginations } from "./request.js";
import { Grid } from "./results.js";
import { signOf } from "./rounds.js";
import { mostResults, usualWeight } from "./service.js";
import { found, moved, say } from "./status.js";
import { suggest } from "./suggestions.js";
import { nameOf, plural, sentence } from "./words.js";

export class Showing {
  #asking;
  #hands;
  /** Names of rows, as answers said them. */
  #known = new Map();
  #grid;
  #detail;
  #mind;
  #chips;
  #options;
  #box = new Box();

  /**
   * @param {import("./asking.js").Asking} asking
   * @param {object} hands what a person does to the round: `add` words, wanted or not; `like`, `judge` a result;
   *   `judgeImagined`, `toggle` an imagined image; `change`, `remove` a piece; `rank` by an option
   */
  constructor(asking, hands) {
    this.#asking = asking;
    this.#hands = hands;
    const part = (number) => this.#choosePart(number);
    this.#grid = new Grid(byId("results"), {
      open: (place) => this.#detail.open(asking.answer, place, this.#look),
      judge: hands.judge,
    });
    this.#detail = new Detail({ like: hands.like, judge: hands.judge, closed: (place) => this.#grid.focus(place) });
    this.#mind = new Mind({ toggle: hands.toggle, judge: hands.judgeImagined, part });
    this.#chips = new Evidence(byId("evidence"), {
      change: hands.change,
      remove: hands.remove,
      part,
      empty: () => byId("query").focus(),
    });
    this.#options = new Options(byId("options"), byId("options-list"), hands.rank);
  }

  /** The page before there is a search. */
  start() {
    clearNotices();
    this.#grid.clear();
    this.#chips.show([], { names: [], first: 0 });
    byId("query").value = "";
    document.title = "mindseye";
    document.body.dataset.view = "start";
    // On a phone this would cover half the page with a keyboard.
    if (matchMedia("(hover: hover)").matches) byId("query").focus();
  }

  /** All that follows from the round itself. */
  round() {
    const { round, imagined } = this.#asking;
    const names = namesOf(round, this.#known);
    const title = headline(round, names);
    document.body.dataset.view = "answer";
    byId("mind").hidden = false;
    document.title = `${title} – mindseye`;
    byId("found-title").textContent = title;
    byId("found-title").classList.toggle("long", title.length > 60);
    this.#chips.show(round.pieces, { names: names.pieces, first: Number(Boolean(round.text)) });
    byId("clear").hidden = !round.pieces.length;
    byId("search").classList.toggle("evidenced", Boolean(round.text && round.pieces.length));
    byId("query").placeholder = round.pieces.length ? "Words as well" : "Name or description";
    this.#mind.showPicture(round, names.pieces, imagined);
    this.weight();
    this.#options.show(round.options);
    this.#grid.mark(this.#signOf);
  }

  /** An answer to the round is asked for. */
  busy(on) {
    byId("found").ariaBusy = String(on);
    if (!on) return;
    clearNotices();
    const { answer, round } = this.#asking;
    if (answer && isJudged(round)) say("The assistant looks at the first pictures…");
  }

  /** It is made from nothing, with so many images to be imagined. */
  searching(awaited) {
    if (!this.#asking.answer) say("Searching…");
    if (awaited) this.#mind.await(awaited);
  }

  noImages() {
    this.#mind.clear();
  }

  imagined() {
    const { imagined, round, answer } = this.#asking;
    this.#mind.showImagined(imagined, round, answer, this.#signOf);
  }

  /** The images have come, and are not yet ranked by. */
  imaginedAnew() {
    this.imagined();
    const { imagined, round } = this.#asking;
    const next = isJudged(round) ? "the assistant looks at what they find" : "ranking again";
    say(`${found(this.#asking)} ${plural(imagined.length, "picture")} imagined; ${next}…`);
  }

  weight() {
    const { round, answer } = this.#asking;
    const fallback = answer && answer.stage !== "text" ? answer.weight : usualWeight();
    this.#mind.showWeight(round, fallback, partsOf(round, answer?.visual));
  }

  answer(answer, last) {
    const { round, imagined, k } = this.#asking;
    for (const result of answer.results) this.#known.set(result.id, nameOf(result));
    this.round();
    if (imagined.length || (round.text && last)) this.imagined();
    this.#grid.show(answer.results, last ? this.#look : { ...this.#look, before: null });
    showAccount(answer, byPictures(round));
    const further = answer.refinements.filter((value) => !this.#signOf({ kind: "text", value, box: null }));
    suggest(byId("refinements"), "Narrow down", further, this.#hands.add);
    const read = answer.recomposed ? `Read as “${answer.recomposed}”, from` : "Read from the picture";
    suggest(byId("words-read"), read, answer.words, this.#hands.add);
    byId("more").hidden = !last || answer.results.length < k || k >= mostResults();
    say(`${found(this.#asking)} ${last ? moved(this.#asking) : coming(round)}`);
    this.#shortcomings(answer, last);
  }

  /** There is no answer to this round, because something failed. */
  failed() {
    const { answer, answered, round, imagined } = this.#asking;
    if (!imagined.length) this.#mind.clear();
    const old = "These are still the pictures of the search before.";
    if (answer) return say(answered === round ? found(this.#asking) : old);
    byId("mind").hidden = true;
    this.#grid.clear();
    say("No results.");
  }

  /** Which of the chips is at fault; −1 for none. */
  mark(number) {
    this.#chips.mark(number);
  }

  /** What the service has to offer. */
  async offer(info) {
    if (!this.#asking.answer) this.weight();
    await this.#options.offer(info, this.#asking.round.options);
  }

  /** How results are shown: what they are compared with, and what the parts of a score are called. */
  get #look() {
    const { round, answer, before } = this.#asking;
    const parts = partsOf(round, answer?.visual);
    return { before, parts, names: namesOf(round, this.#known), signOf: this.#signOf };
  }

  #signOf = (piece) => signOf(this.#asking.round, piece);

  #choosePart(number) {
    const { round } = this.#asking;
    const name = namesOf(round, this.#known).pieces[number];
    this.#box.open(round.pieces[number], name, (box) => this.#hands.change(number, { box }));
  }

  #shortcomings({ shards, degraded, stage, warnings }, last) {
    clearNotices();
    if (degraded) {
      const lacking = shards.answered < shards.total ? "Pictures may be missing. " : "";
      const again = ["Try again", () => this.#asking.again()];
      const words = stage === "text" && last ? "These results are ranked by your words alone. " : "";
      notice("hint", "Not the whole answer", `${words}${lacking}${sentence(degraded)}`, again);
    }
    for (const warning of warnings) notice("hint", "Note", sentence(warning));
  }
}

/** Whether an assistant is to look at what is found. */
const isJudged = ({ options }) => ["judge", "list"].includes(options.rerank);

/** What follows upon the ranking by words. */
const coming = (round) => (round.weight === 0 || !imaginations(round).length ? "" : "Imagining what you mean…");
