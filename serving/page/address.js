/** A round of a search, and the page's address, which says all of it: so back, forward, reload and sharing work. */

/** Pieces of evidence that a search may have, its words among them. */
export const MOST = 16;
/** Weight of what is added for and against (docs/evidence.md). */
export const [FOR, AGAINST] = [1, -0.4];

const OPTIONS = ["fuse", "rerank", "focus", "ignore", "bridge"];
const PIECE = /^(-?\d{1,3}(?:\.\d{1,3})?)\*(text|row|upload|imagined)(?:-(\d{1,4})-(\d{1,4})-(\d{1,4})-(\d{1,4}))?\*(.+)$/s;

/**
 * What is searched for and how.
 *
 * @typedef {{kind: "text" | "row" | "upload" | "imagined", value: string, weight: number, box: number[] | null}} Piece
 *   `box` is [left, top, right, bottom] as fractions of the picture.
 * @typedef {object} Round
 * @property {string} text what stands in the search box
 * @property {Piece[]} pieces
 * @property {number | null} weight λ; null for the service's own
 * @property {Set<number>} drop indices of imagined images to leave out
 * @property {number} seed
 * @property {Record<string, string>} options
 *
 * @returns {Round}
 */
export const empty = () => ({ text: "", pieces: [], weight: null, drop: new Set(), seed: 0, options: {} });

export const isEmpty = (round) => !round.text && !round.pieces.length;

/** Whether two pieces are the same but for their weights. */
export const alike = (a, b) => a.kind === b.kind && a.value === b.value && String(a.box) === String(b.box);

export function addressOf(round) {
  const url = new URL(location.pathname, location.origin);
  const fields = { q: round.text || null, w: round.weight?.toFixed(2), seed: round.seed || null, ...round.options };
  for (const [name, value] of Object.entries(fields)) if (value != null) url.searchParams.set(name, value);
  if (round.drop.size) url.searchParams.set("drop", [...round.drop].sort((a, b) => a - b).join("."));
  for (const piece of round.pieces) url.searchParams.append("e", written(piece));
  return url;
}

/** The round that an address says. Anyone may have written it: what does not fit is left aside. */
export function roundAt(address) {
  const fields = new URL(address).searchParams;
  const matching = (name, pattern) => (pattern.test(fields.get(name) ?? "") ? fields.get(name) : null);
  const weight = matching("w", /^(0(\.\d+)?|1(\.0+)?)$/);
  const options = OPTIONS.map((name) => [name, matching(name, /^[\w ,-]{1,200}$/)]);
  return {
    text: fields.get("q")?.trim() ?? "",
    pieces: [...fields.getAll("like").map((id) => `1*row*${id}`), ...fields.getAll("e")].map(read).filter(Boolean),
    weight: weight === null ? null : Number(weight),
    drop: new Set(matching("drop", /^\d{1,4}(\.\d{1,4})*$/)?.split(".").map(Number)),
    seed: Number(matching("seed", /^\d{1,9}$/)),
    options: Object.fromEntries(options.filter(([, value]) => value !== null)),
  };
}

/** As `weight*kind*value`, with the box in thousandths: signs that an address need not escape. */
function written({ kind, value, weight, box }) {
  const part = box ? `-${box.map((edge) => Math.round(1000 * edge)).join("-")}` : "";
  return `${Number(weight.toFixed(3))}*${kind}${part}*${value}`;
}

function read(text) {
  const [, weight, kind, left, top, right, bottom, value] = PIECE.exec(text) ?? [];
  if (!Number(weight) || !value.trim()) return null;
  const box = left === undefined ? null : [left, top, right, bottom].map((edge) => Number(edge) / 1000);
  if (box && !(box[0] < box[2] && box[2] <= 1 && box[1] < box[3] && box[3] <= 1)) return null;
  return { kind, value: value.trim(), weight: Number(weight), box };
}
