/** The page: the round that its address says, the requests that follow from it, and what is shown of the answers. */

import { showAccount } from "./account.js";
import { addressOf, AGAINST, alike, empty, FOR, isEmpty, MOST, roundAt } from "./address.js";
import * as api from "./api.js";
import { Box } from "./box.js";
import { Detail } from "./detail.js";
import { byId, make } from "./dom.js";
import { Evidence } from "./evidence.js";
import { chooseFiles, takeFiles } from "./files.js";
import { askForKey } from "./key.js";
import { Mind, partsOf } from "./mind.js";
import { headline, namesOf } from "./naming.js";
import { clearNotices, notice, tell } from "./notices.js";
import { Options } from "./options.js";
import { byPictures, imaginations, requestOf } from "./request.js";
import { Grid } from "./results.js";
import { suggest } from "./suggestions.js";
import { send, sendAgain } from "./uploads.js";
import { count, duration, explain, megabytes, MISSING, nameOf, plural, rankedBy, sentence } from "./words.js";

const STEP = 24;
const PAUSE = 120; // milliseconds of rest before the slider's position is asked for

let info = null;
let round = empty();
let k = STEP;
let answer = null;
/** The round that the answer is to. */
let answered = null;
/** The imagined images of the round's words. */
let imagined = [];
/** Texts whose images the service remembers now, with their seeds. */
const remembered = new Set();
/** Places in the ranking by words alone, to tell what has moved; null where pictures count too. */
let byWords = null;
let running = null;
let outdated = false; // whether the round changed while an answer was on its way
let timer = 0;
/** Names of rows, as answers said them. */
const known = new Map();
/** Uploads that were sent again since the last answer. */
const sentTwice = new Set();

const look = () => ({ before: byWords, parts: partsOf(round, answer?.visual), names: namesOf(round, known), signOf });
const grid = new Grid(byId("results"), { open: (place) => detail.open(answer, place, look()), judge: judgeResult });
const mind = new Mind({ toggle, judge: judgeImagined, part: choosePart });
const detail = new Detail({
  like: (result) => change({ ...empty(), weight: round.weight, pieces: [rowOf(result)] }),
  judge: judgeResult,
  closed: (place) => grid.focus(place),
});
const box = new Box();
const chips = new Evidence(byId("evidence"), {
  change: (number, changes, by) => changePiece(number, changes, by),
  remove: (number) => change({ pieces: round.pieces.filter((_, i) => i !== number) }),
  part: choosePart,
  empty: () => byId("query").focus(),
});
const options = new Options(byId("options"), byId("options-list"), (name, value) => {
  const { [name]: _, ...others } = round.options;
  change({ options: value ? { ...others, [name]: value } : others });
});

const rowOf = ({ id }) => ({ kind: "row", value: id, weight: FOR, box: null });

// The round: each change is an entry of the browser's history, and one hand on one control is one entry

function change(changes, { by = null, soon = 0 } = {}) {
  const next = { ...round, ...changes };
  const added = next.pieces.length + Boolean(next.text);
  if (added > MOST && added > round.pieces.length + Boolean(round.text)) {
    return faulty(`A search has up to ${MOST} pieces. Remove one first.`);
  }
  const url = addressOf(next);
  if (url.href !== location.href) {
    history[by && history.state?.by === by ? "replaceState" : "pushState"]({ by }, "", url);
  }
  return go(next, soon);
}

function restore() {
  return go(roundAt(location.href));
}

function go(next, soon = 0) {
  const before = round;
  round = next;
  const sameWords = before.text === round.text;
  const sameEvidence = sameWords && JSON.stringify(before.pieces) === JSON.stringify(round.pieces);
  if (!sameEvidence || isEmpty(round)) k = STEP;
  if (!sameWords || before.seed !== round.seed) {
    imagined = [];
    mind.clear();
  }
  if (!sameWords) answer = null;
  if (!sameEvidence) byWords = null;
  faulty(null);
  if (isEmpty(round)) return start();
  document.body.dataset.view = "answer";
  byId("mind").hidden = false;
  byId("query").value = round.text;
  showRound();
  if (imagined.length) showImagined();
  // While images are being made there is nothing to rank anew: giving up would only make them again.
  if (running && sameEvidence && before.seed === round.seed && round.text && !imagined.length) outdated = true;
  else schedule(soon);
}

function start() {
  halt();
  clearNotices();
  [answer, byWords] = [null, null];
  grid.clear();
  chips.show([], { names: [], first: 0 });
  byId("query").value = "";
  document.title = "mindseye";
  document.body.dataset.view = "start";
  // On a phone this would cover half the page with a keyboard.
  if (matchMedia("(hover: hover)").matches) byId("query").focus();
}

function add(piece) {
  return change({ pieces: [...round.pieces, { box: null, ...piece }] });
}

function changePiece(number, changes, by = null) {
  return change({ pieces: round.pieces.map((piece, i) => (i === number ? { ...piece, ...changes } : piece)) }, { by });
}

/** 1 if a piece is searched for, −1 if against, 0 if it is no part of the round. */
const signOf = (piece) => Math.sign(round.pieces.find((one) => alike(one, piece))?.weight ?? 0);

/** Take a picture into the round with a sign, or out of it if it is there with that sign. */
function judge(piece, wanted) {
  const others = round.pieces.filter((one) => !alike(one, piece));
  const sign = signOf(piece);
  if (sign === (wanted ? 1 : -1)) return change({ pieces: others });
  return change({ pieces: [...others, { ...piece, weight: wanted ? FOR : AGAINST }] });
}

function judgeResult(result, wanted) {
  return judge(rowOf(result), wanted);
}

function judgeImagined(key, wanted) {
  return judge({ kind: "imagined", value: key, box: null }, wanted);
}

function choosePart(number) {
  box.open(round.pieces[number], namesOf(round, known).pieces[number], (part) => changePiece(number, { box: part }));
}

/** Send pictures and take them into the round: in the place of one that is lost, by its key, or as new ones. */
async function take(files, lost = null) {
  clearNotices();
  const pictures = [...files].filter((file) => file.type.startsWith("image/"));
  if (!pictures.length) return notice("error", "That is not a picture", "Choose a JPEG, PNG, WebP or GIF file.");
  const most = info?.limits.body_bytes;
  if (pictures.some((picture) => picture.size > most)) {
    const largest = Math.max(...pictures.map((picture) => picture.size));
    const text = `It has ${megabytes(largest)}; the service takes at most ${megabytes(most)}.`;
    return notice("error", "The picture is too large", `${text} Choose a smaller one.`);
  }
  const told = notice("hint", "One moment", "Your picture is being sent.");
  try {
    for (const picture of pictures) {
      const piece = { kind: "upload", value: await send(picture), weight: FOR, box: null };
      const place = round.pieces.findIndex(({ value }) => value === lost);
      if (place >= 0) changePiece(place, { value: piece.value });
      else if (!signOf(piece)) add(piece);
    }
  } catch (error) {
    fail(error, () => take(files, lost), "The service did not take this picture");
  } finally {
    told.remove();
  }
}

// Asking

function halt() {
  clearTimeout(timer);
  running?.abort();
  running = null;
  byId("found").ariaBusy = "false";
}

function schedule(soon) {
  clearTimeout(timer);
  if (soon) timer = setTimeout(run, soon);
  else run();
}

/** Ask for an answer to the round. An earlier request that is still running is given up. */
async function run() {
  halt();
  const mine = (running = new AbortController());
  outdated = false;
  byId("found").ariaBusy = "true";
  clearNotices();
  try {
    const plain = imaginations(round).every((one) => remembered.has(one)) && (!round.text || imagined.length);
    if (plain) arrive(await api.search(requestOf(round, k, imagined), mine.signal), { last: true });
    else await runInStages(mine.signal);
  } catch (error) {
    if (running === mine && !(await sentAgain(error, mine))) fail(error, run);
  } finally {
    if (running === mine) {
      running = null;
      byId("found").ariaBusy = "false";
      if (outdated) run();
    }
  }
}

async function runInStages(signal) {
  const asked = imaginations(round);
  if (!answer) say("Searching…");
  if (round.text && round.weight !== 0 && !imagined.length) {
    mind.await(info?.images ?? 8);
  }
  let complete = false;
  for await (const [name, data] of api.stream(requestOf(round, k, imagined), signal)) {
    if (name === "text") {
      byWords = byPictures(round) ? null : placesOf(data);
      arrive(data, { last: false });
    } else if (name === "imagined") {
      imagined = data.imagined;
      showImagined();
      say(`${sayFound()} ${plural(imagined.length, "picture")} imagined; ranking again…`);
    } else if (name === "fused") {
      if (!data.degraded) for (const one of asked) remembered.add(one);
      arrive(data, { last: true });
      complete = true;
    }
  }
  if (!complete && answer) arrive(answer, { last: true }); // what is ranked by words alone has no second stage
}

const placesOf = (ranking) => new Map(ranking.results.map((result, place) => [result.id, place]));

/** Whether a picture that the service has lost could be sent again, and the search with it. */
async function sentAgain(error, mine) {
  const lost = round.pieces[pieceOf(error)];
  if (lost?.kind !== "upload" || sentTwice.has(lost.value)) return false;
  sentTwice.add(lost.value);
  try {
    if (!(await sendAgain(lost.value))) return false;
  } catch {
    return false;
  }
  if (running === mine) outdated = true;
  return true;
}

// Showing

function arrive(given, { last }) {
  [answer, answered] = [given, round];
  sentTwice.clear();
  for (const result of given.results) known.set(result.id, nameOf(result));
  if (given.imagined.length) imagined = given.imagined;
  showRound();
  if (round.text && (last || imagined.length)) showImagined();
  grid.show(given.results, { ...look(), before: last ? byWords : null });
  showAccount(given, byPictures(round));
  suggest(byId("refinements"), "Narrow down", given.refinements, addWords);
  const read = given.recomposed ? `Read as “${given.recomposed}”, from` : "Read from the picture";
  suggest(byId("words-read"), read, given.words, addWords);
  const most = info?.limits.k ?? 1000;
  byId("more").hidden = !last || given.results.length < k || k >= most;
  const imagining = round.weight === 0 || !imaginations(round).length ? "" : "Imagining what you mean…";
  say(last ? `${sayFound()} ${sayMoved()}` : `${sayFound()} ${imagining}`);
  showShortcomings(last);
}

function addWords(text, wanted) {
  return add({ kind: "text", value: text, weight: wanted ? FOR : AGAINST });
}

function say(text) {
  if (byId("status").textContent !== text.trim()) byId("status").textContent = text.trim();
}

function sayFound() {
  if (!answer.results.length) return "Nothing was found.";
  const used = imagined.filter((image) => !round.drop.has(image.index)).length;
  const by = rankedBy(answer, round, used);
  const time = answer.timings_ms.total === undefined ? "" : ` in ${duration(answer.timings_ms.total)}`;
  return `${plural(answer.results.length, "picture")}, ranked ${by}${time}.`;
}

function sayMoved() {
  if (!byWords?.size || answer.stage === "text") return "";
  const fresh = answer.results.filter((result) => !byWords.has(result.id)).length;
  const risen = answer.results.filter((result, place) => byWords.get(result.id) > place).length;
  return fresh || risen ? `${count(risen)} moved up, ${count(fresh)} came in.` : "";
}

/** Show all that follows from the round itself. */
function showRound() {
  const names = namesOf(round, known);
  const title = headline(round, names);
  document.title = `${title} – mindseye`;
  byId("found-title").textContent = title;
  byId("found-title").classList.toggle("long", title.length > 60);
  chips.show(round.pieces, { names: names.pieces, first: Number(Boolean(round.text)) });
  byId("clear").hidden = !round.pieces.length;
  byId("search").classList.toggle("evidenced", Boolean(round.text && round.pieces.length));
  byId("query").placeholder = round.pieces.length ? "Words as well" : "Name or description";
  mind.showPicture(round, names.pieces);
  showWeight();
  options.show(round.options);
  grid.mark(signOf);
}

function showImagined() {
  mind.showImagined(imagined, round, answer?.visual, signOf);
}

function showWeight() {
  const fallback = answer && answer.stage !== "text" ? answer.weight : (info?.weight ?? 0.5);
  mind.showWeight(round, fallback, partsOf(round, answer?.visual));
}

function showShortcomings(last) {
  clearNotices();
  const { answered, total } = answer.shards;
  if (answer.degraded) {
    const lacking = answered < total ? "Pictures may be missing. " : "";
    const words = answer.stage === "text" && last ? "These results are ranked by your words alone. " : "";
    notice("hint", "Not the whole answer", `${words}${lacking}${sentence(answer.degraded)}`, run);
  }
  for (const warning of answer.warnings) notice("hint", "Note", sentence(warning));
}

/** The number of the piece that a fault is about; −1 for none of them. */
function pieceOf(error) {
  const [, number] = /^evidence\.(\d+)/.exec(error.field ?? "") ?? [];
  return number === undefined ? -1 : Number(number);
}

/** Say beside the chips what is wrong, or nothing; the rest as `tell`. */
function faulty(text, number = -1, again = null) {
  tell(byId("evidence-fault"), text, again);
  chips.mark(number);
}

function fail(error, retry, otherwise) {
  if (error.name === "AbortError") return;
  if (!(error instanceof api.Fault)) {
    console.error(error);
    notice("error", "Something went wrong", "The page could not make sense of the answer.", retry);
    return;
  }
  if (!imagined.length) mind.clear();
  if (answer) say(answered === round ? sayFound() : "These are still the pictures of the search before.");
  else {
    byId("mind").hidden = true;
    grid.clear();
    say("No results.");
  }
  if (error.status >= 400 && error.field?.startsWith("evidence")) {
    const number = pieceOf(error);
    const { kind, value } = round.pieces[number] ?? {};
    const choose = ["Choose it again", async () => take(await chooseFiles(), value)];
    const text = (error.code === "missing" && MISSING[kind]) || sentence(error.message);
    return faulty(text, number, kind === "upload" ? choose : null);
  }
  const { title, text } = explain(error, otherwise);
  notice("error", title, text, error.status === 422 || error.status === 413 ? null : retry, error.requestId);
}

// Hands

function toggle(index) {
  const drop = new Set(round.drop);
  if (!drop.delete(index)) drop.add(index);
  change({ drop }, { soon: PAUSE });
}

byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("query").value.trim();
  if (!text && !round.pieces.length) return byId("query").focus();
  change({ text, drop: new Set(), seed: 0 });
});
byId("add").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("add-words").value.trim();
  if (!text) return byId("add-words").focus();
  byId("add-words").value = "";
  addWords(text, event.submitter?.value === "for");
});
byId("clear").addEventListener("click", () => {
  change({ pieces: [] });
  byId("query").focus();
});
byId("weight").addEventListener("input", () => {
  change({ weight: Number(byId("weight").value) }, { by: "balance", soon: PAUSE });
});
byId("weight-reset").addEventListener("click", () => {
  byId("weight").focus();
  change({ weight: null });
});
byId("anew").addEventListener("click", () => change({ seed: round.seed + 1, drop: new Set() }));
byId("all").addEventListener("click", () => {
  change({ drop: new Set() });
  byId("imagined").querySelector("button")?.focus();
});
byId("more").addEventListener("click", () => {
  k = Math.min(k + STEP, info?.limits.k ?? 1000);
  run();
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("found").focus();
});
document.addEventListener("keydown", (event) => {
  const typing = /^(INPUT|TEXTAREA)$/.test(document.activeElement?.tagName) && document.activeElement.type !== "range";
  if (event.key !== "/" || typing || document.querySelector("dialog[open]")) return;
  event.preventDefault();
  byId("query").select();
  byId("query").focus();
});
takeFiles(take);
window.addEventListener("popstate", restore);

// The beginning

api.onKeyWanted(askForKey);
api.onBusy(() => say("The service is busy: this search waits for its turn…"));

async function introduce() {
  info = await api.info();
  if (!answer) showWeight();
  const buttons = info.examples.slice(0, 6).map((text) => {
    const button = make("button", { type: "button" }, text);
    button.addEventListener("click", () => change({ text }));
    return button;
  });
  byId("examples").replaceChildren(...buttons);
  byId("examples").hidden = buttons.length === 0;
  const facts = [plural(info.rows, "picture"), `index version ${info.index_version}`, `mindseye ${info.version}`];
  byId("foot").textContent = facts.join(" · ");
  await options.offer(info.aspects, round.options);
}

// The service's own λ and K are good to know for the first search, which need not wait for them.
introduce().catch((error) => isEmpty(round) && fail(error, () => location.reload()));
restore();
