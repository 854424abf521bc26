/** The service's HTTP API: requests, server-sent events, faults, and the API key if the service asks for one. */

const KEY = "mindseye-key";
const PATIENCE = 15_000; // milliseconds
let askForKey = async () => null;
let asking = null;
let tellOfWaiting = () => {};

/** Why a request was not answered. `status` is 0 if there was no answer at all. */
export class Fault extends Error {
  constructor(status, { code = "", message = "", field = null } = {}, requestId = null, retryAfter = null) {
    super(message);
    Object.assign(this, { status, code, field, requestId, retryAfter });
  }

  /** The number of the piece of evidence that it is about; −1 for none of them. */
  get piece() {
    const [, number] = /^evidence\.(\d+)/.exec(this.field ?? "") ?? [];
    return number === undefined ? -1 : Number(number);
  }
}

/** Say how to ask the person for a key: a function that is told whether one was refused, and gives a key or null. */
export function onKeyWanted(ask) {
  askForKey = ask;
}

/** Say what to do when a search has to wait because the service is busy. */
export function onBusy(tell) {
  tellOfWaiting = tell;
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

/**
 * Fetch a path of the service. A service that is busy is asked again when it says so, within bounds: `busy` is called
 * then. Raises Fault for an answer that is an error, and AbortError if aborted.
 */
export async function call(path, { busy = tellOfWaiting, ...init } = {}) {
  const begun = performance.now();
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...init.headers, ...(key && { Authorization: `Bearer ${key}` }) };
    let response;
    try {
      response = await fetch(path, { ...init, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Fault(0);
    }
    if (response.ok) return response;
    if (response.status === 401 && (await keyGiven(key))) continue;
    const fault = await faultOf(response);
    const wait = 1000 * (fault.retryAfter ?? Infinity);
    if (response.status !== 503 || performance.now() - begun + wait > PATIENCE) throw fault;
    init.signal?.throwIfAborted();
    if (init.method === "POST" && !["down", "starting"].includes(fault.code)) busy();
    await pause(wait, init.signal);
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)));
  });
}

/** Whether there is a key now that is another than the refused one. Several requests at once ask only once. */
async function keyGiven(refused) {
  if (sessionStorage.getItem(KEY) !== refused) return true;
  asking ??= askForKey(refused !== null).finally(() => (asking = null));
  const key = await asking;
  if (key === null) return false;
  sessionStorage.setItem(KEY, key);
  return true;
}

async function faultOf(response) {
  const body = await response.json().catch(() => ({}));
  const wait = Number(response.headers.get("Retry-After")) || null;
  return new Fault(response.status, body.error, body.request_id ?? response.headers.get("X-Request-Id"), wait);
}

export const info = async () => (await call("v1/info")).json();

/** One answer to a SearchRequest. */
export async function search(request, signal) {
  return (await call("v1/search", asJson(request, signal))).json();
}

/** A question that would narrow a search: its words to choose from, or why there is none. */
export async function question(request, signal, busy) {
  return (await call("v1/question", { ...asJson(request, signal), busy })).json();
}

/** The events of a search as [name, data], until `done`. Raises Fault for the event `error` and for a broken stream. */
export async function* stream(request, signal) {
  const response = await call("v1/search/stream", asJson(request, signal));
  for await (const [name, data] of events(response.body)) {
    if (name === "done") return;
    if (name === "error") throw new Fault(200, data.error, data.request_id);
    yield [name, data];
  }
  throw new Fault(200, { code: "broken", message: "The answer broke off before it was complete." });
}

/** Send a picture, for evidence: its key, width and height. */
export async function sendPicture(picture) {
  const init = { method: "POST", body: picture, headers: { "Content-Type": picture.type } };
  return (await call("v1/pictures", init)).json();
}

/** The fields of a search request that this service has, by name, as JSON Schema. */
export async function requestFields() {
  return (await (await call("openapi.json")).json()).components.schemas.SearchRequest.properties;
}

function asJson(body, signal) {
  return { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" }, signal };
}

/** Server-sent events of a body (WHATWG HTML, §9.2.6): EventSource itself can neither post nor send a key. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let [rest, name, data] = ["", "message", []];
  try {
    for (;;) {
      const { done, value } = await read(reader);
      if (done) return;
      // A carriage return at the end may be the first half of a line end.
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        const [, field, text] = /^([^:]*):? ?(.*)$/s.exec(line);
        if (field === "event") name = text;
        else if (field === "data") data.push(text);
        else if (line === "") {
          if (data.length) yield [name, JSON.parse(data.join("\n"))];
          [name, data] = ["message", []];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Fault(0);
  }
}
