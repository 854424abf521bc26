/** What stands beside the results: the imagined images or the picture searched with, and how much each half counts. */

import { byId } from "./dom.js";
import { Imagined } from "./imagined.js";
import { showPiece } from "./pictures.js";
import { byPictures, isText } from "./request.js";
import { capital, count, share, weighing } from "./words.js";

export class Mind {
  #strip;

  /** @param {object} hands `toggle` and `judge` of Imagined; `part` chooses a part of the picture of a piece's number */
  constructor(hands) {
    this.#strip = new Imagined(byId("imagined"), hands);
    byId("mind-part").addEventListener("click", () => hands.part(Number(byId("mind-picture").dataset.number)));
  }

  /**
   * Beside the results stands what was imagined of the words; where there are none, the first picture, and what was
   * imagined of the words that were read from it, if any were.
   */
  showPicture({ text, pieces }, names, imagined) {
    const number = text ? -1 : pieces.findIndex((piece) => !isText(piece) && piece.weight > 0);
    const piece = pieces[number];
    byId("imagined").hidden = byId("mind-line").hidden = !text && !imagined.length;
    if (!text) byId("anew").hidden = true;
    byId("mind-title").textContent = text ? "Imagined" : capital(names[number] ?? "Your search");
    byId("mind-picture").hidden = !piece;
    byId("mind-part").hidden = !piece || piece.kind === "imagined";
    if (!piece) return;
    byId("mind-picture").dataset.number = number;
    showPiece(byId("mind-picture"), piece, { large: true });
  }

  /** Empty frames while images are made. */
  await(number) {
    this.#strip.await(number);
    byId("mind-note").textContent = "Being imagined…";
  }

  clear(note = "") {
    this.#strip.clear();
    byId("mind-note").textContent = note;
    byId("all").hidden = byId("anew").hidden = true;
  }

  /** Show the imagined images of a round, or in words why there are none. */
  showImagined(images, { text, drop, weight }, answer, signOf) {
    if (!images.length) return this.clear(none(weight, answer?.visual));
    byId("imagined").hidden = byId("mind-line").hidden = false;
    this.#strip.show(images, drop, signOf);
    const out = images.filter((image) => drop.has(image.index)).length;
    const amount = out === images.length ? "All" : count(out);
    const read = answer?.recomposed ? `Imagined as “${answer.recomposed}”. ` : weighing(images);
    byId("mind-note").textContent = out ? `${amount} left out` : `${read}Leave out what you do not mean.`;
    byId("all").hidden = out === 0;
    byId("anew").hidden = !text;
  }

  /** Show λ: the round's own, or `fallback`; `ends` are the names of what it weighs. */
  showWeight({ weight }, fallback, ends) {
    const slider = byId("weight");
    const shown = weight ?? fallback;
    if (document.activeElement !== slider || weight === null) slider.value = shown;
    const said = [`${ends[0]} ${share(1 - shown)}`, `${ends[1]} ${share(shown)}`];
    slider.setAttribute("aria-valuetext", said.join(", "));
    [byId("words-end").textContent, byId("pictures-end").textContent] = said;
    byId("weight-reset").hidden = weight === null;
  }
}

/** What the two parts of a score are called. */
export function partsOf(round, visual) {
  if (byPictures(round)) return ["meaning", "looks"];
  return ["words", visual === "nearest" ? "nearest pictures" : "imagined pictures"];
}

function none(weight, visual) {
  if (visual === "nearest") {
    return "No picture was imagined. The pictures of the gallery nearest to your words stand in for them.";
  }
  return weight === 0 ? "Nothing: this ranking is by words alone." : "Nothing, this time.";
}
