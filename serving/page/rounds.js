/** What a round becomes by a hand of the person's: each function returns what is new of it, and changes nothing. */

import { AGAINST, alike, FOR } from "./address.js";

export const pictureOf = (kind, value) => ({ kind, value, weight: FOR, box: null });
export const wordsOf = (text, wanted) => ({ kind: "text", value: text, weight: wanted ? FOR : AGAINST, box: null });

/** How many pieces it has, the words of the search box among them. */
export const sizeOf = ({ text, pieces }) => pieces.length + Boolean(text);

/** 1 if a piece is searched for, −1 if against, 0 if it is no part of the round. */
export const signOf = ({ pieces }, piece) => Math.sign(pieces.find((one) => alike(one, piece))?.weight ?? 0);

/** A piece taken in, in the place of one that differs by its weight alone. */
export const added = ({ pieces }, piece) => ({ pieces: [...pieces.filter((one) => !alike(one, piece)), piece] });
export const removed = ({ pieces }, number) => ({ pieces: pieces.filter((_, i) => i !== number) });
export const changed = ({ pieces }, number, changes) => ({
  pieces: pieces.map((piece, i) => (i === number ? { ...piece, ...changes } : piece)),
});

/** A picture taken in with a sign, or out if it is there with that sign. */
export function judged(round, piece, wanted) {
  const pieces = round.pieces.filter((one) => !alike(one, piece));
  if (signOf(round, piece) === (wanted ? 1 : -1)) return { pieces };
  return { pieces: [...pieces, { ...piece, weight: wanted ? FOR : AGAINST }] };
}

/** An imagined image left out by its index, or taken back. */
export function toggled({ drop }, index) {
  const others = new Set(drop);
  if (!others.delete(index)) others.add(index);
  return { drop: others };
}

/** A way to rank chosen by its name; null for the service's own. */
export function ranked({ options }, name, value) {
  const { [name]: _, ...others } = options;
  return { options: value ? { ...others, [name]: value } : others };
}
