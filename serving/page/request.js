/** The search request of a round, and what has to be imagined for it. */

export const isText = ({ kind }) => kind === "text";

/** Whether pictures count as well as words. */
export const byPictures = ({ pieces }) => pieces.some((piece) => !isText(piece));

/** What is imagined for a round: its texts, each with the seed, and what is read from pictures together with them. */
export function imaginations(round) {
  const { text, pieces, seed, options } = round;
  const texts = [text, ...pieces.filter(isText).map(({ value }) => value)].filter(Boolean);
  const read = byPictures(round) && (texts.length > 0 || options.bridge === "words");
  const together = JSON.stringify([text, options.bridge, pieces.map(({ weight, ...piece }) => [weight > 0, piece])]);
  return [...texts, ...(read ? [together] : [])].map((one) => `${seed} ${one}`);
}

/** The request for the k best; `imagined` are the images of the round's own words, as far as they are known. */
export function requestOf({ text, pieces, weight, drop, seed, options }, k, imagined) {
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
    ...(text && !byWords && { drop: [...drop] }),
    ...(byWords ? { mode: "text" } : weight !== null && { weight }),
  };
}

const evidenceOf = ({ kind, value, weight, box }) => ({ [kind]: value, weight, ...(box && { box }) });
