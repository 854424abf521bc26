/** The page: what is searched for, the requests that follow from it, and what is shown of the answers. */

import * as api from "./api.js";
import { Detail } from "./detail.js";
import { byId, describe, make } from "./dom.js";
import { takeFiles } from "./files.js";
import { Imagined } from "./imagined.js";
import { askForKey } from "./key.js";
import { Grid } from "./results.js";
import {
  count, duration, explain, megabytes, nameOf, plural, rankedBy, sentence, share, weighing,
} from "./words.js";

const STEP = 24;
const PAUSE = 120; // milliseconds of rest before the slider's position is asked for
const TEXT_PARTS = ["words", "imagined pictures"];
const PICTURE_PARTS = ["meaning", "looks"];

let info = null;
/** What is searched for: {text}, {picture, name, like?} with a Blob and perhaps its id in the gallery, or null. */
let wanted = null;
/** How: `weight` is null for the service's own λ; `drop` has the indices of images to leave out. */
let how = { weight: null, drop: new Set(), seed: 0, k: STEP };
let answer = null;
let imagined = [];
/** Places in the ranking by words alone, to tell what has moved; null for pictures. */
let byWords = null;
let running = null;
let outdated = false; // whether `how` changed while an answer was on its way
let timer = 0;
/** Uploaded pictures by number: an address cannot hold them, the history's entries name them. */
const uploads = [];

const grid = new Grid(byId("results"), (place) => detail.open(answer, place, { before: byWords, parts: parts() }));
const strip = new Imagined(byId("imagined"), toggle);
const detail = new Detail((result) => searchLike(result.id, nameOf(result)), (place) => grid.focus(place));
const parts = () => (wanted?.picture ? PICTURE_PARTS : TEXT_PARTS);

// What is searched for

function begin(search, settings = {}) {
  wanted = search;
  how = { weight: how.weight, drop: new Set(), seed: 0, k: STEP, ...settings };
  [answer, imagined, byWords] = [null, [], null];
  document.body.dataset.view = "answer";
  byId("mind").hidden = false;
  document.title = `${search.text ?? search.name} – mindseye`;
  byId("found-title").textContent = search.text ?? `Like ${search.name}`;
  byId("query").value = search.text ?? "";
  showPicture(search.picture ? search : null);
  byId("account").hidden = byId("more").hidden = true;
  clearImagined();
  showWeight();
  return run();
}

function searchText(text) {
  const search = { text: text.trim() };
  if (!search.text) return byId("query").focus();
  remember(search, {});
  return begin(search);
}

async function searchLike(id, name, settings) {
  halt();
  const mine = (running = new AbortController());
  try {
    const picture = await api.galleryPicture(id, mine.signal);
    const search = { picture, name, like: id };
    if (!settings) remember(search, { name });
    await begin(search, settings);
  } catch (error) {
    if (running !== mine) return;
    halt();
    fail(error, () => searchLike(id, name, settings));
  }
}

function searchUpload(files) {
  byId("notices").replaceChildren();
  const picture = [...files].find((file) => file.type.startsWith("image/"));
  if (!picture) return notice("error", "That is not a picture", "Choose a JPEG, PNG, WebP or GIF file.");
  const most = info?.limits.body_bytes;
  if (picture.size > most) {
    const text = `It has ${megabytes(picture.size)}; the service takes at most ${megabytes(most)}.`;
    return notice("error", "The picture is too large", `${text} Choose a smaller one.`);
  }
  const search = { picture, name: "your picture" };
  remember(search, { upload: uploads.push(search) - 1 });
  return begin(search);
}

// The address: what is searched for and how, so that it can be shared and gone back to

function address(search) {
  const url = new URL(location.pathname, location.origin);
  const fields = { q: search?.text, like: search?.like, w: how.weight?.toFixed(2), seed: how.seed || null };
  for (const [name, value] of Object.entries(fields)) if (value != null) url.searchParams.set(name, value);
  if (how.drop.size) url.searchParams.set("drop", [...how.drop].sort((a, b) => a - b).join("."));
  return url;
}

function remember(search, state) {
  how = { ...how, drop: new Set(), seed: 0 };
  const url = address(search);
  if (url.href !== location.href || state.upload !== undefined) history.pushState(state, "", url);
}

function restore() {
  const fields = new URLSearchParams(location.search);
  const state = history.state ?? {};
  // An address may have been written by anyone: what does not fit is left aside.
  const matching = (name, pattern) => (pattern.test(fields.get(name) ?? "") ? fields.get(name) : null);
  const weight = matching("w", /^(0(\.\d+)?|1(\.0+)?)$/);
  const settings = {
    weight: weight === null ? null : Number(weight),
    seed: Number(matching("seed", /^\d{1,9}$/)),
    drop: new Set(matching("drop", /^\d{1,4}(\.\d{1,4})*$/)?.split(".").map(Number)),
  };
  if (fields.get("q")?.trim()) return begin({ text: fields.get("q").trim() }, settings);
  if (fields.get("like")) return searchLike(fields.get("like"), state.name ?? "a picture", settings);
  if (uploads[state.upload]) return begin(uploads[state.upload], settings);
  halt();
  byId("notices").replaceChildren();
  if (state.upload !== undefined) {
    notice("hint", "That picture is gone", "It was not kept when the page closed. Choose it again.");
  }
  [wanted, answer] = [null, null];
  grid.clear();
  showPicture(null);
  byId("query").value = "";
  document.title = "mindseye";
  document.body.dataset.view = "start";
  // On a phone this would cover half the page with a keyboard.
  if (matchMedia("(hover: hover)").matches) byId("query").focus();
}

// Asking

const request = () => ({
  query: wanted.text,
  k: how.k,
  seed: how.seed,
  // With every image left out there is nothing to rank by but the words.
  ...(allDropped() ? { mode: "text" } : { drop: [...how.drop], ...(how.weight !== null && { weight: how.weight }) }),
});

const allDropped = () => imagined.length > 0 && imagined.every((image) => how.drop.has(image.index));

function halt() {
  clearTimeout(timer);
  running?.abort();
  running = null;
  byId("found").ariaBusy = "false";
}

/** Ask for an answer to what is wanted now. An earlier request that is still running is given up. */
async function run() {
  halt();
  const mine = (running = new AbortController());
  outdated = false;
  byId("found").ariaBusy = "true";
  byId("notices").replaceChildren();
  try {
    if (wanted.picture) take(await api.searchPicture(wanted.picture, how, mine.signal), { last: true });
    else if (imagined.length) take(await api.search(request(), mine.signal), { last: true });
    else await runInStages(mine.signal);
  } catch (error) {
    if (running === mine) fail(error, run);
  } finally {
    if (running === mine) {
      running = null;
      byId("found").ariaBusy = "false";
      if (outdated) run();
    }
  }
}

async function runInStages(signal) {
  if (!answer) say("Searching…");
  const number = how.weight === 0 ? 0 : (info?.images ?? 8);
  if (number) {
    strip.await(number);
    byId("mind-note").textContent = "Being imagined…";
  }
  let complete = false;
  for await (const [name, data] of api.stream(request(), signal)) {
    if (name === "text") {
      byWords = placesOf(data);
      take(data, { last: false });
    } else if (name === "imagined") {
      imagined = data.imagined;
      showImagined();
      say(`${sayFound()} ${plural(imagined.length, "picture")} imagined; ranking again…`);
    } else if (name === "fused") {
      take(data, { last: true });
      complete = true;
    }
  }
  if (!complete && answer) take(answer, { last: true }); // what is ranked by words alone has no second stage
}

const placesOf = (ranking) => new Map(ranking.results.map((result, place) => [result.id, place]));

/** The ranking is to follow `how`: soon, once the hand rests. What was imagined is remembered by the service. */
function again({ soon = PAUSE } = {}) {
  if (!wanted) return;
  history.replaceState(history.state, "", address(wanted));
  clearTimeout(timer);
  // While images are being made there is nothing to rank anew: giving up would only make them again.
  if (running && !wanted.picture && !imagined.length) outdated = true;
  else timer = setTimeout(run, soon);
}

// Showing

function take(given, { last }) {
  answer = given;
  if (given.imagined.length) imagined = given.imagined;
  if (!wanted.picture && (last || imagined.length)) showImagined();
  grid.show(given.results, { before: last && !wanted.picture ? byWords : null, parts: parts() });
  showWeight();
  showAccount();
  const most = info?.limits.k ?? 1000;
  byId("more").hidden = !last || given.results.length < how.k || how.k >= most;
  say(last ? `${sayFound()} ${sayMoved()}` : `${sayFound()} ${how.weight === 0 ? "" : "Imagining what you mean…"}`);
  showShortcomings(last);
}

function say(text) {
  if (byId("status").textContent !== text.trim()) byId("status").textContent = text.trim();
}

function sayFound() {
  if (!answer.results.length) return "Nothing was found.";
  const used = imagined.filter((image) => !how.drop.has(image.index)).length;
  const by = rankedBy(answer, used, Boolean(wanted.picture));
  const time = answer.timings_ms.total === undefined ? "" : ` in ${duration(answer.timings_ms.total)}`;
  return `${plural(answer.results.length, "picture")}, ranked ${by}${time}.`;
}

function sayMoved() {
  if (!byWords?.size || wanted.picture || answer.stage === "text") return "";
  const fresh = answer.results.filter((result) => !byWords.has(result.id)).length;
  const risen = answer.results.filter((result, place) => byWords.get(result.id) > place).length;
  return fresh || risen ? `${count(risen)} moved up, ${count(fresh)} came in.` : "";
}

function showImagined() {
  if (!imagined.length) {
    clearImagined(how.weight === 0 ? "Nothing: this ranking is by words alone." : "Nothing, this time.");
    return;
  }
  strip.show(imagined, how.drop);
  const out = imagined.filter((image) => how.drop.has(image.index)).length;
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

function showPicture(search) {
  const [picture, chip] = [byId("mind-picture"), byId("chip-picture")];
  if (picture.src) URL.revokeObjectURL(picture.src);
  for (const image of [picture, chip]) image.removeAttribute("src");
  byId("chip").hidden = picture.hidden = !search;
  byId("imagined").hidden = byId("mind-line").hidden = Boolean(search);
  byId("mind-title").textContent = search ? "Your picture" : "Imagined";
  byId("query").placeholder = search ? "Or words instead" : "Name or description";
  if (search) {
    picture.src = chip.src = URL.createObjectURL(search.picture);
    byId("chip-name").textContent = search.name;
  }
}

function showWeight() {
  const slider = byId("weight");
  const fallback = answer && answer.stage !== "text" ? answer.weight : (info?.weight ?? 0.5);
  const weight = how.weight ?? fallback;
  if (document.activeElement !== slider || how.weight === null) slider.value = weight;
  const ends = [`${parts()[0]} ${share(1 - weight)}`, `${parts()[1]} ${share(weight)}`];
  slider.setAttribute("aria-valuetext", ends.join(", "));
  [byId("words-end").textContent, byId("pictures-end").textContent] = ends;
  byId("weight-reset").hidden = how.weight === null;
}

function showAccount() {
  const stages = Object.entries(answer.timings_ms).map(([stage, ms]) => `${stage} ${duration(ms)}`);
  const memory = { hit: "imagined before", miss: "imagined now", off: "not used" }[answer.memory];
  const stage = { text: "words", visual: "imagined pictures", fused: "words and imagined pictures" }[answer.stage];
  describe(byId("account-list"), [
    ["Ranked by", wanted.picture ? "picture" : stage],
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
  byId("notices").replaceChildren();
  const { answered, total } = answer.shards;
  if (answer.degraded) {
    const lacking = answered < total ? "Pictures may be missing. " : "";
    const words = answer.stage === "text" && last ? "These results are ranked by your words alone. " : "";
    notice("hint", "Not the whole answer", `${words}${lacking}${sentence(answer.degraded)}`, run);
  }
  for (const warning of answer.warnings) notice("hint", "Note", sentence(warning));
}

function fail(error, retry) {
  if (error.name === "AbortError") return;
  if (!(error instanceof api.Fault)) {
    console.error(error);
    notice("error", "Something went wrong", "The page could not make sense of the answer.", retry);
    return;
  }
  if (!imagined.length) clearImagined();
  if (answer) say(sayFound());
  else {
    byId("mind").hidden = true;
    grid.clear();
    say("No results.");
  }
  const { title, text } = explain(error);
  notice("error", title, text, error.status === 422 || error.status === 413 ? null : retry, error.requestId);
}

/** A message above the results: `kind` is error or hint; `retry` puts a button beside it. */
function notice(kind, title, text, retry = null, requestId = null) {
  const body = make("p", {}, make("strong", {}, title), ` ${text} `);
  if (requestId) body.append(make("small", {}, `Request ${requestId}`));
  const box = make("div", { class: `notice ${kind}`, role: kind === "error" ? "alert" : "note" }, body);
  if (retry) {
    const button = make("button", { type: "button", class: "link" }, "Try again");
    button.addEventListener("click", () => {
      box.remove();
      retry();
    });
    box.append(button);
  }
  byId("notices").append(box);
}

// Hands

function toggle(index) {
  if (!how.drop.delete(index)) how.drop.add(index);
  showImagined();
  again();
}

byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  searchText(byId("query").value);
});
byId("chip-remove").addEventListener("click", () => {
  history.pushState(null, "", location.pathname);
  restore();
  byId("query").focus();
});
byId("weight").addEventListener("input", () => {
  how.weight = Number(byId("weight").value);
  showWeight();
  again();
});
byId("weight-reset").addEventListener("click", () => {
  how.weight = null;
  byId("weight").focus();
  again({ soon: 0 });
});
byId("anew").addEventListener("click", () => {
  how = { ...how, seed: how.seed + 1, drop: new Set() };
  imagined = [];
  halt();
  again({ soon: 0 });
});
byId("all").addEventListener("click", () => {
  how.drop.clear();
  showImagined();
  byId("imagined").querySelector("button")?.focus();
  again({ soon: 0 });
});
byId("more").addEventListener("click", () => {
  how.k = Math.min(how.k + STEP, info?.limits.k ?? 1000);
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
takeFiles(searchUpload);
window.addEventListener("popstate", restore);

// The beginning

api.onKeyWanted(askForKey);
api.onBusy(() => say("The service is busy: this search waits for its turn…"));

async function introduce() {
  info = await api.info();
  if (!answer) showWeight();
  const buttons = info.examples.slice(0, 6).map((text) => {
    const button = make("button", { type: "button" }, text);
    button.addEventListener("click", () => searchText(text));
    return button;
  });
  byId("examples").replaceChildren(...buttons);
  byId("examples").hidden = buttons.length === 0;
  const facts = [plural(info.rows, "picture"), `index version ${info.index_version}`, `mindseye ${info.version}`];
  byId("foot").textContent = facts.join(" · ");
}

// The service's own λ and K are good to know for the first search, which need not wait for them.
introduce().catch((error) => !wanted && fail(error, () => location.reload()));
restore();
