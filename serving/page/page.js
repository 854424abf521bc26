/** The page: the round that its address says, the requests that follow from it, and what is shown of the answers. */

import { addressOf, AGAINST, alike, empty, FOR, isEmpty, MOST, roundAt } from "./address.js";
import * as api from "./api.js";
import { Box } from "./box.js";
import { Detail } from "./detail.js";
import { byId, describe, make } from "./dom.js";
import { Evidence } from "./evidence.js";
import { chooseFiles, takeFiles } from "./files.js";
import { Imagined } from "./imagined.js";
import { askForKey } from "./key.js";
import { namesOf, headline } from "./naming.js";
import { clearNotices, notice } from "./notices.js";
import { Options } from "./options.js";
import { showPiece } from "./pictures.js";
import { Grid } from "./results.js";
import { suggest } from "./suggestions.js";
import { send, sendAgain } from "./uploads.js";
import { capital, count, duration, explain, megabytes, nameOf, plural, rankedBy, sentence, share, weighing } from "./words.js";

const STEP = 24;
const PAUSE = 120; // milliseconds of rest before the slider's position is asked for
const TEXT_PARTS = ["words", "imagined pictures"];
const PICTURE_PARTS = ["meaning", "looks"];

let info = null;
let round = empty();
let k = STEP;
let answer = null;
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

const look = () => ({ before: byWords, parts: parts(), names: namesOf(round, known), signOf });
const grid = new Grid(byId("results"), { open: (place) => detail.open(answer, place, look()), judge: judgeResult });
const strip = new Imagined(byId("imagined"), { toggle, judge: judgeImagined });
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

const isText = ({ kind }) => kind === "text";
const byPictures = () => round.pieces.some((piece) => !isText(piece));
const parts = () => (byPictures() ? PICTURE_PARTS : TEXT_PARTS);
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
    clearImagined();
  }
  if (!sameWords) answer = null;
  if (!sameEvidence) byWords = null;
  faulty(null);
  if (isEmpty(round)) return start();
  document.body.dataset.view = "answer";
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

/** Send pictures and take them into the round: in the place of the piece of a number, or as new ones. */
async function take(files, place = null) {
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
      if (place !== null) changePiece(place, { value: piece.value });
      else if (!signOf(piece)) add(piece);
    }
  } catch (error) {
    fail(error, () => take(files, place), "The service did not take this picture");
  } finally {
    told.remove();
  }
}

// Asking

const texts = () => [round.text, ...round.pieces.filter(isText).map((piece) => piece.value)].filter(Boolean);
const imaginations = () => texts().map((text) => `${round.seed} ${text}`);

function request() {
  const { ignore, ...others } = round.options;
  return {
    ...(round.text && { query: round.text }),
    ...(round.pieces.length && {
      evidence: round.pieces.map(({ kind, value, weight, box: part }) => ({
        [kind]: value,
        weight,
        ...(part && { box: part }),
      })),
    }),
    k,
    seed: round.seed,
    ...others,
    ...(ignore && { ignore: ignore.split(",") }),
    // With every image left out there is nothing to rank by but the words.
    ...(allDropped() && !round.pieces.length ? { mode: "text" } : { drop: [...round.drop] }),
    ...(round.weight !== null && !allDropped() && { weight: round.weight }),
  };
}

const allDropped = () => imagined.length > 0 && imagined.every((image) => round.drop.has(image.index));

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
    const plain = imaginations().every((one) => remembered.has(one)) && (!round.text || imagined.length);
    if (plain) arrive(await api.search(request(), mine.signal), { last: true });
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
  const asked = imaginations();
  if (!answer) say("Searching…");
  if (round.text && round.weight !== 0 && !imagined.length) {
    strip.await(info?.images ?? 8);
    byId("mind-note").textContent = "Being imagined…";
  }
  let complete = false;
  for await (const [name, data] of api.stream(request(), signal)) {
    if (name === "text") {
      byWords = byPictures() ? null : placesOf(data);
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
    if (!(await sendAgain(lost.value, mine.signal))) return false;
  } catch {
    return false;
  }
  if (running === mine) outdated = true;
  return true;
}

// Showing

function arrive(given, { last }) {
  answer = given;
  sentTwice.clear();
  for (const result of given.results) known.set(result.id, nameOf(result));
  if (given.imagined.length) imagined = given.imagined;
  showRound();
  if (round.text && (last || imagined.length)) showImagined();
  grid.show(given.results, { ...look(), before: last ? byWords : null });
  showAccount();
  suggest(byId("refinements"), "Narrow down", given.refinements, addWords);
  suggest(byId("words-read"), "Read from the picture", given.words, addWords);
  const most = info?.limits.k ?? 1000;
  byId("more").hidden = !last || given.results.length < k || k >= most;
  const imagining = round.weight === 0 || !texts().length ? "" : "Imagining what you mean…";
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
  chips.show(round.pieces, { names: names.pieces, first: Number(Boolean(round.text)) });
  byId("clear").hidden = !round.pieces.length;
  byId("query").placeholder = round.pieces.length ? "Words as well" : "Name or description";
  showPicture(names.pieces);
  showWeight();
  options.show(round.options);
  grid.mark(signOf);
}

/** Beside the results: what was imagined of the words, or the first picture where there are no words. */
function showPicture(names) {
  const number = round.text ? -1 : round.pieces.findIndex((piece) => !isText(piece) && piece.weight > 0);
  const piece = round.pieces[number];
  byId("imagined").hidden = byId("mind-line").hidden = !round.text;
  if (!round.text) byId("anew").hidden = true;
  byId("mind-title").textContent = round.text ? "Imagined" : capital(names[number] ?? "Your search");
  byId("mind-picture").hidden = !piece;
  if (piece) showPiece(byId("mind-picture"), piece, { large: true });
}

function showImagined() {
  if (!imagined.length) {
    const nearest = "No picture was imagined: the pictures of the gallery nearest to your words stand in for them.";
    const none = round.weight === 0 ? "Nothing: this ranking is by words alone." : "Nothing, this time.";
    clearImagined(answer?.visual === "nearest" ? nearest : none);
    return;
  }
  strip.show(imagined, round.drop, signOf);
  const out = imagined.filter((image) => round.drop.has(image.index)).length;
  const amount = out === imagined.length ? "All" : count(out);
  byId("mind-note").textContent = out ? `${amount} left out` : `${weighing(imagined)}Leave out what you do not mean.`;
  byId("all").hidden = out === 0;
  byId("anew").hidden = false;
}

function clearImagined(note = "") {
  strip.clear();
  byId("mind-note").textContent = note;
  byId("all").hidden = byId("anew").hidden = true;
}

function showWeight() {
  const slider = byId("weight");
  const fallback = answer && answer.stage !== "text" ? answer.weight : (info?.weight ?? 0.5);
  const weight = round.weight ?? fallback;
  if (document.activeElement !== slider || round.weight === null) slider.value = weight;
  const ends = [`${parts()[0]} ${share(1 - weight)}`, `${parts()[1]} ${share(weight)}`];
  slider.setAttribute("aria-valuetext", ends.join(", "));
  [byId("words-end").textContent, byId("pictures-end").textContent] = ends;
  byId("weight-reset").hidden = round.weight === null;
}

function showAccount() {
  const stages = Object.entries(answer.timings_ms).map(([stage, ms]) => `${stage} ${duration(ms)}`);
  const memory = { hit: "imagined before", miss: "imagined now", off: "not used" }[answer.memory];
  const stage = { text: "words", visual: "imagined pictures", fused: "words and imagined pictures" }[answer.stage];
  const visual = { imagined: "imagined pictures", nearest: "the nearest pictures of the gallery", given: "given pictures" };
  describe(byId("account-list"), [
    ["Ranked by", byPictures() ? "evidence" : stage],
    ...(answer.visual ? [["Looks taken from", visual[answer.visual] ?? answer.visual]] : []),
    ...(answer.reranked ? [["Second look", answer.reranked]] : []),
    ["λ", answer.weight.toFixed(3)],
    ["Memory", memory ?? answer.memory],
    ["Time", stages.join(", ")],
    ["Index version", answer.index_version],
    ["Shards that answered", `${answer.shards.answered} of ${answer.shards.total}`],
    ["Request", answer.request_id],
  ]);
  byId("account").hidden = false;
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

/** Say beside the chips what is wrong; `again` is a button's words and what it does. */
function faulty(text, number = -1, again = null) {
  const place = byId("evidence-fault");
  place.hidden = !text;
  place.replaceChildren(text ?? "");
  chips.mark(number);
  if (!again) return;
  const button = make("button", { type: "button", class: "link" }, again[0]);
  button.addEventListener("click", again[1]);
  place.append(" ", button);
}

function fail(error, retry, otherwise) {
  if (error.name === "AbortError") return;
  if (!(error instanceof api.Fault)) {
    console.error(error);
    notice("error", "Something went wrong", "The page could not make sense of the answer.", retry);
    return;
  }
  if (!imagined.length) clearImagined();
  if (answer) say(sayFound());
  else {
    grid.clear();
    say("No results.");
  }
  if (error.status >= 400 && error.field?.startsWith("evidence")) {
    const number = pieceOf(error);
    const choose = ["Choose it again", async () => take(await chooseFiles(), number)];
    return faulty(sentence(error.message), number, round.pieces[number]?.kind === "upload" ? choose : null);
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
