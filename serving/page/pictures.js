/** Pictures of the service in <img> elements: plainly, or through fetch where an API key must go with the request. */

import { call, hasKey } from "./api.js";

const KEPT = 400;
const blobs = new Map();

/** Show the picture at `url` in `image`; where it cannot be had, the element has the class `missing`. */
export async function show(image, url) {
  if (image.dataset.url === url && !image.classList.contains("missing")) return;
  image.dataset.url = url;
  image.classList.remove("missing");
  image.onerror = () => image.classList.add("missing");
  try {
    const source = await sourceOf(url);
    if (image.dataset.url === url) image.src = source;
  } catch {
    if (image.dataset.url === url) image.classList.add("missing");
  }
}

/** Show the picture of a piece of evidence, or the part of it that is meant; `large` for as large as there is. */
export function showPiece(image, { kind, value, box }, { large = false } = {}) {
  image.style.objectViewBox = box ? `inset(${[box[1], 1 - box[2], 1 - box[3], box[0]].map(percent).join(" ")})` : "";
  // A part of a thumbnail would be a blur.
  if (kind === "row") return show(image, `v1/images/${encodeURIComponent(value)}${large || box ? "" : "?size=thumbnail"}`);
  return show(image, `v1/${kind === "upload" ? "pictures" : "imagined"}/${value}`);
}

const percent = (fraction) => `${100 * fraction}%`;

/** What an element's address can be set to. Pictures, and the key, are for this service's own addresses alone. */
export async function sourceOf(url) {
  const address = new URL(url, document.baseURI);
  if (address.origin !== location.origin) throw new Error(`${url} is not an address of this service`);
  return hasKey() ? blobOf(address.href) : address.href;
}

function blobOf(address) {
  const fetched = async () => URL.createObjectURL(await (await call(address)).blob());
  const known = blobs.get(address) ?? fetched();
  blobs.delete(address);
  blobs.set(address, known);
  known.catch(() => blobs.delete(address));
  if (blobs.size > KEPT) {
    const [[oldest, source]] = blobs;
    blobs.delete(oldest);
    source.then(URL.revokeObjectURL, () => {});
  }
  return known;
}
