/** What the page says: numbers, rankings, faults, in plain words. */

const whole = new Intl.NumberFormat("en");
const percent = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 0 });

export const count = (n) => whole.format(n);
export const share = (part) => percent.format(part);
export const figure = (score, digits = 3) => score.toFixed(digits).replace("-", "−");
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;
export const duration = (ms) => (ms < 950 ? `${Math.max(1, Math.round(ms))} ms` : `${(ms / 1000).toFixed(1)} s`);
export const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MB`;

/** A label, else the file's name. */
export const nameOf = (result) => result.label || result.path.split("/").pop() || result.id;

export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** A sentence of the service's, with a capital and a full stop. */
export function sentence(text) {
  const trimmed = capital(text.trim());
  return /[.!?…]$/.test(trimmed) ? trimmed : `${trimmed}.`;
}

/** What an answer was ranked by. */
export function rankedBy(answer, round, used) {
  const { length } = round.pieces;
  if (!round.text) return length > 1 ? `by ${plural(length, "piece")} of evidence` : byOne(round.pieces[0]);
  const by = byWords(answer, used);
  return length ? `${by}, with ${plural(length, "more piece")} of evidence` : by;
}

const byOne = ({ kind }) =>
  kind === "text" ? "by your words" : `by likeness to ${kind === "upload" ? "your" : "the"} picture`;

function byWords(answer, used) {
  if (answer.stage === "text" || answer.weight === 0) return "by your words";
  const pictures = answer.visual === "nearest" ? "the pictures nearest to them" : plural(used, "imagined picture");
  const alone = answer.stage === "visual" || answer.weight === 1;
  return alone ? `by ${pictures} alone` : `by your words and ${pictures}`;
}

/** The shares of evidence in a result's score, in words; empty for a search by one piece. */
export function sharesOf({ shares }, names) {
  if (!(shares?.length > 1)) return "";
  return `by evidence: ${shares.map((size, i) => `${names[i] ?? `piece ${i + 1}`} ${figure(size)}`).join(", ")}`;
}

/** What is to be known of the shares of imagined pictures: a service picks none of them by itself if they are equal. */
export function weighing(images) {
  const shares = images.map((image) => image.attention ?? 0);
  const equal = 1 / images.length;
  if (images.length < 2 || shares.some((part) => Math.abs(part - equal) > equal / 5)) return "";
  return "All count about the same. ";
}

/** How far a result has come from its place in the ranking by words: a short sign and a phrase. */
export function movement(rank, before, among) {
  if (before === undefined) return { sign: "new", phrase: `not among the first ${among} by words alone`, up: true };
  if (before === rank) return null;
  const places = plural(Math.abs(before - rank), "place");
  return before > rank
    ? { sign: `↑${before - rank}`, phrase: `up ${places} from the ranking by words alone`, up: true }
    : { sign: `↓${rank - before}`, phrase: `down ${places} from the ranking by words alone`, up: false };
}

/** What the second stage is called, by the name that a request has for it. */
export const SECOND_LOOK = {
  neighbours: "neighbours",
  judge: "assistant, one by one",
  list: "assistant, side by side",
};

/** What is said of a piece of evidence that the service lacks, by its kind. */
export const MISSING = {
  row: "The gallery does not have this picture, or no longer.",
  upload: "The service no longer has this picture.",
  imagined: "The service no longer remembers this imagined picture.",
};

const TITLES = {
  0: "The service cannot be reached",
  401: "The service wants a key",
  408: "That took too long",
  413: "That is too large",
  429: "Too many searches just now",
  503: "The service is busy",
  504: "That took too long",
};

/** Title and text for a fault; `refused` is the title of one that the request itself is to blame for. */
export function explain(fault, refused = "The service did not take this search") {
  const asked = fault.status >= 400 && fault.status < 500;
  const title = TITLES[fault.status] ?? (asked ? refused : "Something went wrong");
  const message = fault.message || (fault.status === 0 ? "Is it running, and is your connection up?" : "");
  const wait = fault.retryAfter ? `Try again in ${plural(fault.retryAfter, "second")}.` : "";
  return { title, text: [message && sentence(message), wait].filter(Boolean).join(" ") };
}
