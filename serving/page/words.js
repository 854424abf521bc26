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
export function rankedBy(answer, used, byPicture) {
  if (byPicture) return "by likeness to your picture";
  const imagined = plural(used, "imagined picture");
  if (answer.stage === "text" || answer.weight === 0) return "by your words";
  return answer.stage === "visual" || answer.weight === 1 ? `by ${imagined} alone` : `by your words and ${imagined}`;
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

const TITLES = {
  0: "The service cannot be reached",
  401: "The service wants a key",
  408: "That took too long",
  413: "That is too large",
  429: "Too many searches just now",
  503: "The service is busy",
  504: "That took too long",
};

/** Title and text for a fault. */
export function explain(fault) {
  const asked = fault.status >= 400 && fault.status < 500;
  const title = TITLES[fault.status] ?? (asked ? "The service did not take this search" : "Something went wrong");
  const message = fault.message || (fault.status === 0 ? "Is it running, and is your connection up?" : "");
  const wait = fault.retryAfter ? `Try again in ${plural(fault.retryAfter, "second")}.` : "";
  return { title, text: [message && sentence(message), wait].filter(Boolean).join(" ") };
}
