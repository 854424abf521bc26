/** The search request of a round, and what has to be imagined for it. */

export const isText = ({ kind }) => kind === "text";

/** Whether words say what is wanted. */
export const isInWords = ({ text, pieces }) => Boolean(text) || pieces.some((piece) => isText(piece) && piece.weight > 0);

/** Whether pictures count as well as words. */
export const byPictures = ({ pieces }) => pieces.some((piece) => !isText(piece));

const textsOf = ({ text, pieces }) => [text, ...pieces.filter(isText).map(({ value }) => value)].filter(Boolean);

/** What pictures are read into words from, if the service can read them; null if none are to be read. */
export function reading(round) {
  const { text, pieces, options } = round;
  const wanted = pieces.some((piece) => !isText(piece) && piece.weight > 0);
  const read = wanted && options.bridge !== "none" && (textsOf(round).length > 0 || options.bridge === "words");
  if (!read) return null;
  return JSON.stringify([text, options.bridge, pieces.map(({ weight, ...piece }) => [weight > 0, piece])]);
}

/** What is imagined for a round: its texts, each with the seed, and what is read from pictures together with them. */
export function imaginations(round) {
  const read = reading(round);
  return [...textsOf(round), ...(read ? [read] : [])].map((one) => `${round.seed} ${one}`);
}

/** The request for the k best; `imagined` are the images of the round's own words, as far as they are known. */
export function requestOf(round, k, imagined) {
  const { text, pieces, weight, drop, seed, options } = round;
  const { ignore, ...others } = options;
  // With every image left out there is nothing to rank by but the words.
  const byWords = imagined.length > 0 && !pieces.length && imagined.every(({ index }) => drop.has(index));
  return {
    ...(text && { query: text }),
    ...(pieces.length && { evidence: pieces.map(evidenceOf) }),
    k,
    seed,
    ...others,
    ...(ignore && { ignore: ignore.split(",") }),
    ...((text || (drop.size && reading(round))) && !byWords && { drop: [...drop] }),
    ...(byWords ? { mode: "text" } : weight !== null && { weight }),
  };
}

const evidenceOf = ({ kind, value, weight, box }) => ({ [kind]: value, weight, ...(box && { box }) });
