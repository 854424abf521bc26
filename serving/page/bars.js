/** Bars that show what a score is made of: its two parts, or the shares of the pieces of evidence. */

import { make } from "./dom.js";

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);

/** What a result's bar is made of: sizes by what they are of, `of-words`, `of-pictures` or the number of a piece. */
export function partsOf(result) {
  if (result.shares?.length > 1) return result.shares.map((size, piece) => ({ size, of: piece }));
  return byHalves(result);
}

export const byHalves = ({ text_part, visual_part }) => [
  { size: text_part, of: "of-words" },
  { size: visual_part, of: "of-pictures" },
];

/** Length of what counts for a result. */
export const lengthOf = (parts) => sum(parts.map(({ size }) => Math.max(0, size)));

/**
 * Fill a bar whose whole length is `full`. What counts for a result has a length each; over their end lies what counts
 * against it, so that the score is what stays free.
 */
export function fill(bar, parts, full) {
  const pieces = parts.map(({ size, of }, i) => {
    const piece = bar.children[i]?.tagName === "I" ? bar.children[i] : make("i");
    const numbered = typeof of === "number";
    piece.className = numbered ? "piece-colour" : of;
    if (numbered) colour(piece, of);
    piece.style.setProperty("--of", Math.max(0, size) / full);
    return piece;
  });
  const taken = sum(parts.map(({ size }) => Math.max(0, -size)));
  const counts = lengthOf(parts);
  if (taken > 0) {
    const shade = make("b");
    shade.style.setProperty("--from", Math.max(0, counts - taken) / full);
    shade.style.setProperty("--of", Math.min(counts, taken) / full);
    pieces.push(shade);
  }
  if (pieces.length !== bar.children.length || pieces.some((piece, i) => bar.children[i] !== piece)) {
    bar.replaceChildren(...pieces);
  }
}

/** Give an element the colour of a piece of evidence by its number: far from those before it. */
export function colour(element, number) {
  element.style.setProperty("--hue", (268 + 137.5 * number) % 360);
}
