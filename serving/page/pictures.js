/** Pictures of the service in <img> elements: plainly, or through fetch where an API key must go with the request. */

import { call, hasKey } from "./api.js";

const KEPT = 400;
const blobs = new Map();

/** Show the picture at `url` in `image`; where it cannot be had, the element has the class `missing`. */
export async function show(image, url) {
  if (image.dataset.url === url) return;
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
