/** What the pieces of a round are called, and the round as a whole. */

const OF_KIND = { row: "a picture of the gallery", upload: "your picture" };

/**
 * Names of the pieces, each once; `all` has the words of the search box first, as shares have them.
 *
 * @param {import("./address.js").Round} round
 * @param {Map<string, string>} known names of rows
 * @returns {{pieces: string[], all: string[]}}
 */
export function namesOf(round, known) {
  const taken = new Map();
  const pieces = round.pieces.map(({ kind, value }) => {
    const name = nameOfPiece(kind, value, known);
    taken.set(name, (taken.get(name) ?? 0) + 1);
    return taken.get(name) > 1 ? `${name} (${taken.get(name)})` : name;
  });
  return { pieces, all: round.text ? [round.text, ...pieces] : pieces };
}

function nameOfPiece(kind, value, known) {
  if (kind === "text") return value;
  if (kind === "imagined") return `imagined picture ${Number(value.split("/").pop()) + 1}`;
  return (kind === "row" && known.get(value)) || OF_KIND[kind];
}

/** The round in a line, such as "star, without red, like 2 pictures". */
export function headline({ text, pieces }, names) {
  const some = (words, wanted) =>
    names.pieces.filter((_, i) => (pieces[i].kind === "text") === words && pieces[i].weight > 0 === wanted);
  const phrases = [
    text,
    said("with", some(true, true)),
    said("like", some(false, true)),
    said("without", some(true, false)),
    said("unlike", some(false, false)),
  ].filter(Boolean);
  const line = phrases.join(", ");
  return text ? line : line.charAt(0).toUpperCase() + line.slice(1);
}

const said = (how, names) =>
  names.length > 2 ? `${how} ${names.length} ${how.startsWith("with") ? "words" : "pictures"}` : names.length && `${how} ${names.join(" and ")}`;
