/** The page: the round that its address says, and how each hand of the person's leads to the next one. */

import { addressOf, empty, isEmpty, MOST, roundAt } from "./address.js";
import * as api from "./api.js";
import { Asking } from "./asking.js";
import { listen } from "./controls.js";
import { byId } from "./dom.js";
import { chooseFiles, takeFiles } from "./files.js";
import { introduce } from "./introduction.js";
import { askForKey } from "./key.js";
import { notice, tell } from "./notices.js";
import { Question } from "./question.js";
import { isInWords, reading } from "./request.js";
import { added, changed, judged, pictureOf, ranked, removed, signOf, sizeOf, toggled, wordsOf } from "./rounds.js";
import { info, learn } from "./service.js";
import { Showing } from "./showing.js";
import { say } from "./status.js";
import { sendAll } from "./taking.js";
import { explain, MISSING, sentence } from "./words.js";

const PAUSE = 120; // milliseconds of rest before the slider's position is asked for

const asking = new Asking({
  begins: () => showing.busy(true),
  searches: (awaited) => showing.searching(awaited),
  imagines: () => showing.imaginedAnew(),
  arrives: (answer, last) => {
    showing.answer(answer, last);
    if (last) offerQuestion();
  },
  fails: (error) => {
    question.offer(false);
    fail(error, () => asking.again());
  },
  ends: () => showing.busy(false),
  forgets: () => showing.noImages(),
});
const showing = new Showing(asking, {
  add,
  like: (result) => change({ ...empty(), weight: asking.round.weight, pieces: [pictureOf("row", result.id)] }),
  judge: (result, wanted) => change(judged(asking.round, pictureOf("row", result.id), wanted)),
  judgeImagined: (key, wanted) => change(judged(asking.round, pictureOf("imagined", key), wanted)),
  toggle: (index) => change(toggled(asking.round, index), { pause: PAUSE }),
  change: (number, changes, by) => change(changed(asking.round, number, changes), { by }),
  remove: (number) => change(removed(asking.round, number)),
  rank: (name, value) => change(ranked(asking.round, name, value)),
});

const question = new Question({
  ask: (signal, busy) => api.question(asking.request, signal, busy),
  choose: (word) => add(word, true),
});

/** Offer the assistant's question where there is one to ask by words about what was found. */
function offerQuestion() {
  const { answer, round } = asking;
  question.offer(info?.assistant > 0 && answer?.results.length > 0 && (isInWords(round) || answer.recomposed));
}

/** Change the round. Each change is an entry of the browser's history, and one hand on one control (`by`) is one. */
function change(changes, { by = null, pause = 0 } = {}) {
  const next = { ...asking.round, ...changes };
  // What is read anew is imagined anew: these are no longer the images that were left out.
  if (info?.aspects.length && reading(next) !== reading(asking.round)) next.drop = new Set();
  if (sizeOf(next) > MOST && sizeOf(next) > sizeOf(asking.round)) {
    return faulty(`A search has up to ${MOST} pieces. Remove one first.`);
  }
  const url = addressOf(next);
  if (url.href !== location.href) {
    history[by && history.state?.by === by ? "replaceState" : "pushState"]({ by }, "", url);
  }
  go(next, pause);
}

function go(next, pause = 0) {
  asking.turn(next);
  faulty(null);
  question.dismiss();
  if (!asking.answer) question.offer(false);
  if (isEmpty(next)) {
    asking.stop();
    return showing.start();
  }
  byId("query").value = next.text;
  showing.round();
  if (asking.imagined.length) showing.imagined();
  asking.ask(pause);
}

const restore = () => go(roundAt(location.href));

function add(text, wanted) {
  change(added(asking.round, wordsOf(text, wanted)));
}

/** Send pictures and take them into the round: in the place of one that is lost, by its key, or as new ones. */
async function take(files, lost = null) {
  try {
    await sendAll(files, (key) => {
      const piece = pictureOf("upload", key);
      const place = asking.round.pieces.findIndex(({ value }) => value === lost);
      if (place >= 0) change(changed(asking.round, place, { value: key }));
      else if (!signOf(asking.round, piece)) change(added(asking.round, piece));
    });
  } catch (error) {
    fail(error, () => take(files, lost), "The service did not take this picture");
  }
}

/** Say beside the chips what is wrong, or nothing; the rest as `tell`. */
function faulty(text, number = -1, again = null) {
  tell(byId("evidence-fault"), text, again);
  showing.mark(number);
}

function fail(error, retry, otherwise) {
  if (error.name === "AbortError") return;
  if (!(error instanceof api.Fault)) {
    console.error(error);
    notice("error", "Something went wrong", "The page could not make sense of the answer.", ["Try again", retry]);
    return;
  }
  showing.failed();
  if (error.status >= 400 && error.field?.startsWith("evidence")) {
    const { kind, value } = asking.round.pieces[error.piece] ?? {};
    const choose = ["Choose it again", async () => take(await chooseFiles(), value)];
    const text = (error.code === "missing" && MISSING[kind]) || sentence(error.message);
    return faulty(text, error.piece, kind === "upload" ? choose : null);
  }
  const { title, text } = explain(error, otherwise);
  notice("error", title, text, wayOut(error, retry), error.requestId);
}

/** What can be done about a fault: a button's words and what it does; null for nothing. */
function wayOut({ status, field }, retry) {
  const { round } = asking;
  if (Object.hasOwn(round.options, field)) return ["Search without it", () => change(ranked(round, field, null))];
  if (field === "drop") return ["Leave out none", () => change({ drop: new Set() })];
  return status === 422 || status === 413 ? null : ["Try again", retry];
}

listen({
  search: (text) => {
    if (!text && !asking.round.pieces.length) return byId("query").focus();
    change({ text, drop: new Set(), seed: 0 });
  },
  add,
  weight: (weight) => change({ weight }, weight === null ? {} : { by: "balance", pause: PAUSE }),
  clear: () => change({ pieces: [] }),
  anew: () => change({ seed: asking.round.seed + 1, drop: new Set() }),
  takeBack: () => change({ drop: new Set() }),
  more: () => asking.more(),
});
takeFiles(take);
window.addEventListener("popstate", restore);
api.onKeyWanted(askForKey);
api.onBusy(() => say("The service is busy: this search waits for its turn…"));

async function begin() {
  await learn();
  introduce(info, (text) => change({ text }));
  offerQuestion();
  await showing.offer(info);
}

// The service's own λ and K are good to know for the first search, which need not wait for them.
begin().catch((error) => isEmpty(asking.round) && fail(error, () => location.reload()));
restore();
